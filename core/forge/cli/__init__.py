"""The command line. It parses and prints; everything else is `forge.Forge`'s. Heavy imports happen inside the verbs."""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from copy import copy
from functools import partial
from importlib import import_module
from itertools import takewhile
from typing import IO, Any, NamedTuple, cast

import click


class Verb(NamedTuple):
    """Where a verb stands, and its line in the list of all: naming them imports none."""

    name: str
    module: str
    command: str
    line: str


VERBS = (
    Verb("add", "keep", "add", "Build RECIPES and publish them beside what is there."),
    Verb("bench", "bench", "bench", "Measure what is served, and compare measurements."),
    Verb("build", "build", "build", "Fetch, convert and publish RECIPES into a model repository."),
    Verb("bundle", "bundle", "bundle", "Put all that a build of RECIPES needs into one file."),
    Verb("cache", "cache", "cache", "Look after the store of finished artifacts."),
    Verb("chat", "generate", "chat", "Talk with a served MODEL, in its own chat template."),
    Verb("check", "check", "check", "Find what is wrong in a Triton model REPOSITORY."),
    Verb("cluster", "cluster", "cluster", "The machines that `--executor ray` spreads steps over."),
    Verb("completion", "settings", "completion", "Print what completes forge's words in a shell."),
    Verb("config", "settings", "config", "What is said once: the config file and FORGE_* variables."),
    Verb("dockerfile", "build", "dockerfile", "Print the Dockerfile of RECIPE's image."),
    Verb("doctor", "check", "doctor", "Say what this machine lacks for RECIPES, and how to fix it."),
    Verb("export", "export", "export", "Write what other tools take: a deployment for Kubernetes."),
    Verb("fetch", "hub", "fetch", "Download what RECIPES need, and build nothing."),
    Verb("fit", "fit", "fit", "Say what RECIPES need in memory, and whether a GPU takes it."),
    Verb("generate", "generate", "generate", "Ask a served MODEL to continue PROMPT."),
    Verb("list", "keep", "list_models", "List the models of a repository, and where each is served."),
    Verb("lock", "build", "lock", "Pin RECIPE's commit, files and image in RECIPE.lock."),
    Verb("logs", "serve", "logs", "Show the log of a repository's server, or of its last one."),
    Verb("new", "build", "new", "Write a recipe for a checkpoint, or copy a shipped one."),
    Verb("new-plugin", "plugins", "new_plugin", "Write a plugin for a family: a distribution with tests."),
    Verb("node", "cluster", "node", "This machine, as one of a cluster."),
    Verb("plan", "build", "plan", "Show what a build of RECIPES would do, and whether it fits."),
    Verb("plugins", "plugins", "plugins", "Show the installed families and variants, and their health."),
    Verb("proto", "proto", "proto", "Write KServe's service definition, for clients without one."),
    Verb("ps", "ps", "ps", "Show what is served: memory, uptime, requests so far."),
    Verb("reload", "serve", "reload", "Have a running server take in what has changed."),
    Verb("remove", "keep", "remove", "Take MODEL out of a repository."),
    Verb("run", "run", "run", "Build, serve and talk: from a recipe or a hub id to a chat."),
    Verb("schema", "plugins", "schema", "Print the JSON schema of a recipe or a deployment."),
    Verb("search", "hub", "search", "Look for models on the hub, and say what runs here."),
    Verb("serve", "serve", "serve", "Start Triton on one model repository, or on several."),
    Verb("show", "ps", "show", "Show what stands behind a served MODEL."),
    Verb("status", "serve", "status", "Show the servers that are running."),
    Verb("stop", "serve", "stop", "Stop the server on a model repository."),
    Verb("toolchain", "plugins", "toolchain", "List an image's conversion scripts, and the flags of one."),
    Verb("tune", "tune", "tune", "Find the settings of RECIPE that serve best, by measuring."),
    Verb("verify", "verify", "verify", "Prove that a served MODEL says what its checkpoint says."),
)


def habits() -> dict[str, str]:
    """Words of other tools -> what is meant here."""
    from importlib import resources

    import tomli

    return tomli.loads((resources.files("forge.cli") / "habits.toml").read_text(encoding="utf-8"))


_JSON = "forge.json"


class ToldError(click.ClickException):
    """What is wrong with a command line, for who wants JSON: the one document on stdout, as of every other error of a verb."""

    exit_code = click.UsageError.exit_code

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(error.format_message())
        self._context = error.ctx

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002 - click's
        import json

        said: dict[str, object] = {"kind": "UsageError", "message": self.message}
        said["where"] = self._context.command_path if self._context else ""
        said["hint"] = self._context.get_usage() if self._context else ""
        click.echo(json.dumps({"error": {**said, "problems": [], "exit_code": self.exit_code}}, ensure_ascii=False))


@contextmanager
def _telling(*, as_json: bool) -> Generator[None]:
    """Usage errors, from wherever in a verb, in the form that was asked for."""
    try:
        yield
    except click.UsageError as error:
        if not as_json:
            raise
        raise ToldError(error) from None


def _told(command: click.Command, *, as_json: bool) -> click.Command:
    """The command, whose wrong words are told in the form that was asked for; of a group also those of its verbs.

    What a verb itself finds wrong is told where it runs (``output.verb``): nothing of this is between click and a verb.
    """

    def around(call: Callable[..., Any]) -> Callable[..., Any]:
        def telling(*args: Any, **words: Any) -> Any:
            with _telling(as_json=as_json):
                return call(*args, **words)

        return telling

    told = copy(command)
    vars(told)["make_context"] = around(partial(type(command).make_context, told))
    if isinstance(told, click.Group):
        vars(told)["invoke"] = around(partial(type(told).invoke, told))
    return told


def _have_streams() -> None:
    """Where standard streams are closed (``2>&-``) what is said there goes nowhere, and no file gets their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for as long as this process lives
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


class Verbs(click.Group):
    """The verbs, each imported when it is asked for.

    Whether JSON is wanted is read from the words as they were typed: where they cannot be parsed nothing else says so.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        _have_streams()
        as_json = "--json" in takewhile(lambda word: word != "--", args)
        with _telling(as_json=as_json):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[_JSON] = as_json
        return context

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        for verb in VERBS:
            if verb.name == cmd_name:
                return cast("click.Command", getattr(import_module(f"forge.cli.{verb.module}"), verb.command))
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        with _telling(as_json=ctx.meta[_JSON]):
            name, command, left = self._resolved(ctx, args)
        return name, command and _told(command, as_json=ctx.meta[_JSON]), left

    def _resolved(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from forge.errors import near

            meant = habits().get(args[0].lower())
            close = "" if meant else near(args[0], [verb.name for verb in VERBS])
            hint = f" `forge {meant}` is what does that here." if meant else f" Did you mean {close!r}?" if close else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        columns = formatter.width - 6 - max(len(verb.name) for verb in VERBS)
        with formatter.section("Commands"):
            formatter.write_dl([(verb.name, click.Command(None, help=verb.line).get_short_help_str(columns)) for verb in VERBS])


def _width() -> int:
    """Columns for a help text, as click has them; click would import shutil for it, and with that four compressions."""
    columns = 80
    with suppress(OSError, ValueError):
        columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(1).columns
    return max(min(columns or 80, 80) - 2, 50)


EPILOG = """FORGE_HOME names the folder of the store, of servers' logs and of notes (default: forge in the user's cache folder,
~/.cache/forge); ~/.config/forge/config.toml says it once, and more (`forge config show`). HF_TOKEN and HF_ENDPOINT say who asks
which hub."""


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "terminal_width": _width()}, epilog=EPILOG)
@click.version_option(package_name="triton-forge", prog_name="forge")
def main() -> None:
    """From a model id to tokens streaming out of Triton.

    \b
    forge run smollm2-135m-instruct
    forge run google/gemma-2b-it --runtime vllm

    \b
    forge build smollm2-135m-instruct
    forge serve --detach
    forge generate smollm2-135m-instruct "Why is the sky blue?"
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # a connection that ends has forge's own words, not gRPC's log as well
