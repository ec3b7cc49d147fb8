"""How the command line speaks: results on stdout (text or JSON), progress and errors on stderr."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property, wraps
from types import FrameType
from typing import Any, ParamSpec

import click

import forge
from forge.cli import ToldError
from forge.cli.text import shown
from forge.errors import ConfigError, ForgeError, PluginError, RecipeError

P = ParamSpec("P")
INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever ends a verb on Ctrl-C, and cleans up after it, does so then too."""


@contextmanager
def _terminable() -> Generator[None]:
    """While it lasts, SIGTERM raises Terminated, once: what is cleaned up then is not interrupted by another."""

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # Python lets no other set a handler
        yield
        return
    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


class Output:
    """One verb's voice. ``result`` is said once, ``line`` for each of a stream; ``listener`` shows a build's events."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self.verbose = verbose
        self._screen = ExitStack()

    @property
    def listener(self) -> Callable[[Any], None]:
        """Shows events: the structured log with -v, bars on a tty, plain lines otherwise, nothing when quiet."""
        if self.verbose:
            from forge.cli.progress import structured

            return structured()
        if self._quiet:
            return lambda _: None
        if not sys.stderr.isatty():
            from forge.cli.progress import plain

            return plain()
        return lambda event: self._bars(event)  # noqa: PLW0108 - inlined, it would import rich now

    @cached_property
    def _bars(self) -> Callable[[Any], None]:
        """Made for the first event: many a verb has none, and importing rich takes a while."""
        from forge.cli.bars import Bars

        return self._screen.enter_context(closing(Bars()))

    def here(self, *, jobs: int | None = None, executor: Any = None, remote: str | None = None) -> "forge.Forge":
        """Forge.here(), which tells ``listener``. It is imported now, and not before the verb's words were looked at."""
        return forge.Forge.here(self.listener, jobs=jobs, executor=executor, remote=remote)

    def close(self) -> None:
        """Take what only shows progress off the screen: what is said from now on stays."""
        self._screen.close()

    def result(self, document: object, text: str) -> None:
        """The verb's one answer: ``document`` as JSON, or ``text``."""
        if self.as_json:
            self.line(document)
        elif text:
            click.echo(shown(text))

    def line(self, document: object) -> None:
        """One JSON document on one line of stdout."""
        import msgspec

        click.echo(msgspec.json.encode(document).decode())

    def say(self, text: str) -> None:
        """A remark on stderr."""
        if not self._quiet:
            click.echo(shown(text), err=True)

    def warn(self, text: str) -> None:
        """What is wrong with the result, on stderr; also to who wants no progress."""
        click.echo(shown(text), err=True)

    def fail(self, error: ForgeError) -> None:
        """Say what went wrong; with --json as the one document on stdout, otherwise on stderr."""
        raised = error.__cause__ if isinstance(error, PluginError) else None
        if raised and self.verbose:
            import traceback

            click.echo("".join(traceback.format_exception(raised)), err=True, nl=False)
        if self.as_json:
            problems = error.problems if isinstance(error, RecipeError | ConfigError) else ()
            document: dict[str, object] = {
                "kind": type(error).__name__,
                "message": error.what,
                "where": error.where,
                "hint": error.hint,
                "problems": [{"where": p.where, "what": p.what, "hint": p.hint} for p in problems],
                "exit_code": error.exit_code,
            }
            if isinstance(error, PluginError):
                document |= {"plugin": error.plugin, "hook": error.hook, "distribution": error.distribution}
                document["source"] = error.source
            self.line({"error": document})
            return
        click.echo(click.style("error: ", fg="red", bold=True) + shown(str(error)), err=True)
        if raised and not self.verbose:
            click.echo("    -v shows the traceback", err=True)


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command --json, --quiet and -v, its ``Output`` as first argument, and forge's errors their exit codes."""

    @click.option("--json", "as_json", is_flag=True, help="Answer in JSON on stdout, nothing else there.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
    @click.option("-v", "--verbose", is_flag=True, help="The structured log on stderr instead of progress.")
    @wraps(function)
    def run(*, as_json: bool, quiet: bool, verbose: bool, **arguments: object) -> None:
        output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
        try:
            with closing(output), _terminable():
                function(output, **arguments)
        except click.UsageError as error:
            if not as_json:
                raise
            raise ToldError(error) from None
        except ForgeError as error:
            output.fail(error)
            sys.exit(error.exit_code)
        except Terminated:
            output.say("terminated")
            sys.exit(TERMINATED)
        except KeyboardInterrupt:
            output.say("interrupted")
            sys.exit(INTERRUPTED)
        except BrokenPipeError:  # the reader of our stdout went away, as `| head` does
            sys.stderr.close()
            sys.exit(1)
        except OSError as error:  # a disk or a permission; which file it was is all that a person needs
            refused = _refusal(error)
            output.fail(refused)
            sys.exit(refused.exit_code)

    return run


def _refusal(error: OSError) -> ForgeError:
    from forge.files.trees import refusal
    from forge.settings import home

    return refusal(error, home(os.environ))
