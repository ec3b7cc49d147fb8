"""What a person types at a prompt: with line editing, history and several lines where Python's readline is there."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from forge.client.conversation import COMMANDS

PROMPT, MORE = "> ", "... "
FENCE = '"""'
KEPT = 1000
"""Lines of history."""


class Typist:
    """Reads what a person types; ``history`` is the file that keeps it, readable by its user alone."""

    def __init__(self, history: Path) -> None:
        self._history = history
        self._readline()

    def _readline(self) -> None:
        """Line editing for ``input``, history of former talks, and completion of commands, where this Python has them."""
        with contextlib.suppress(ImportError):
            import readline

            readline.parse_and_bind("tab: complete")
            readline.parse_and_bind("set enable-bracketed-paste on")
            readline.set_completer_delims(" ")
            readline.set_completer(lambda text, at: next(iter([c for c in COMMANDS if text and c.startswith(text)][at:]), None))
            readline.set_history_length(KEPT)
            with contextlib.suppress(OSError):
                readline.read_history_file(self._history)

    def close(self) -> None:
        """Keep the history."""
        with contextlib.suppress(ImportError, OSError):
            import readline

            self._history.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._history, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.write_history_file(self._history)

    def text(self) -> str | None:
        """What is typed next, None at Ctrl-D; Ctrl-C at the prompt takes back what was typed."""
        while True:
            try:
                line = input(PROMPT)
                text = self._fenced(line) if line.lstrip().startswith(FENCE) else line
            except EOFError:
                click.echo()
                return None
            except KeyboardInterrupt as error:
                if type(error) is not KeyboardInterrupt:  # SIGTERM
                    raise
                click.echo("\n(Ctrl-D or /bye ends the talk)", err=True)
                continue
            if text.strip():
                return text.strip()

    def _fenced(self, first: str) -> str:
        lines = [first.lstrip().removeprefix(FENCE)]
        while not lines[-1].rstrip().endswith(FENCE):
            lines.append(input(MORE))
        lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
        return "\n".join(lines)


def whole() -> str:
    """All of standard input; a usage error where it is no UTF-8 text, whatever this shell's locale is."""
    return _decoded(sys.stdin.buffer.read())


def piped(lines: Iterable[str] | None = None) -> Iterator[str]:
    """Lines from a pipe, until an empty one."""
    for line in lines if lines is not None else map(_decoded, iter(sys.stdin.buffer.readline, b"")):
        if not line.strip():
            return
        yield line.strip()


def _decoded(given: bytes) -> str:
    try:
        return given.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"standard input is not UTF-8 text ({error})") from None
