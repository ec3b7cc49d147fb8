"""The command line. It parses and prints; everything else is `forge.Forge`'s. Heavy imports happen inside the verbs."""

import os
from contextlib import suppress
from importlib import import_module
from typing import NamedTuple, cast

import click


class Verb(NamedTuple):
    """Where a verb stands, and its line in the list of all: naming them imports none."""

    name: str
    module: str
    command: str
    line: str


VERBS = (
    Verb("add", "keep", "add", "Build RECIPES and publish them beside what the repository holds, each under its prefix."),
    Verb("bench", "bench", "bench", "Measure what is served, and compare measurements."),
    Verb("build", "build", "build", "Fetch, convert, and publish RECIPES into a model repository that is ready to serve."),
    Verb("cache", "cache", "cache", "Look after the store of finished artifacts."),
    Verb("chat", "generate", "chat", "Talk with a served MODEL, in its own chat template, with history."),
    Verb(
        "check",
        "check",
        "check",
        "Find what is wrong in a Triton model REPOSITORY, forge's own or any other, before a server trips over it.",
    ),
    Verb("config", "config", "config", "What is said once for a person or a site: the config file and FORGE_* variables."),
    Verb("dockerfile", "build", "dockerfile", "Print the Dockerfile that a build would make RECIPE's image from."),
    Verb(
        "doctor",
        "check",
        "doctor",
        "Look at what RECIPES need of this machine and the network, and say how to mend what is missing.",
    ),
    Verb(
        "fit",
        "fit",
        "fit",
        "Say what RECIPES need in memory and on disk, and whether a GPU takes it, before any weights are fetched.",
    ),
    Verb("generate", "generate", "generate", "Ask a served MODEL to continue PROMPT and stream its answer."),
    Verb(
        "list",
        "keep",
        "list_models",
        "List the models of a repository: runtime, names, size, the key of what was published, and where it is served.",
    ),
    Verb("lock", "build", "lock", "Pin RECIPE's commit, files and image in RECIPE.lock."),
    Verb("logs", "serve", "logs", "Show the log of the server on a model repository."),
    Verb("new", "build", "new", "Write a recipe for the checkpoint SOURCE: a hub id, a git URL, a folder, or a .gguf file."),
    Verb(
        "plan",
        "build",
        "plan",
        "Show what a build of RECIPES would do: each step, where it is, or why it is made; and whether it fits.",
    ),
    Verb(
        "plugins",
        "plugins",
        "plugins",
        "Show the installed families and variants, where they come from, and whether they work.",
    ),
    Verb(
        "reload",
        "serve",
        "reload",
        "Have a running server take in what has changed in its repositories, or only one recipe's models.",
    ),
    Verb("remove", "keep", "remove", "Take MODEL out of a repository."),
    Verb("schema", "plugins", "schema", "Print the JSON schema of a recipe or a deployment, for editors."),
    Verb("serve", "serve", "serve", "Start Triton on a model repository, or on several, and wait until every model is ready."),
    Verb("status", "serve", "status", "Show the servers that are running."),
    Verb("stop", "serve", "stop", "Stop the server on a model repository; nothing of it stays behind."),
    Verb(
        "verify",
        "verify",
        "verify",
        "Prove that what a served MODEL says is what its checkpoint says, and name the stage that is guilty when it is not.",
    ),
)


class Verbs(click.Group):
    """The verbs, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        for verb in VERBS:
            if verb.name == cmd_name:
                return cast("click.Command", getattr(import_module(f"forge.cli.{verb.module}"), verb.command))
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], [verb.name for verb in VERBS], 1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
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


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "terminal_width": _width()})
@click.version_option(package_name="triton-forge", prog_name="forge")
def main() -> None:
    """From a model id to tokens streaming out of Triton.

    \b
    forge build recipes/smollm2-135m-instruct.toml
    forge serve --detach
    forge generate smollm2-135m-instruct "Why is the sky blue?"
    """
