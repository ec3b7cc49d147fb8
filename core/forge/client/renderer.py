"""Runs apart from forge: renders one chat template, time and again, within limits of time, memory and length.

    python renderer.py

Standard input and output carry JSON, a document on each line: first the template with its limits, then conversations. It
imports nothing of forge, for it is started anew whenever a template went beyond a limit. A template may loop inside of C, where
nothing but a signal ends it: the kernel's clock for processor time does, by SIGPROF. It ends with its standard input.
"""

import json
import resource
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_SAID = 1000
"""Characters that are repeated of what a template says when it refuses."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Templates come with downloaded models: they may compute, and reach nothing."""


class _Generation(Extension):
    """``{% generation %}`` marks, for training, what the assistant said; here it only lets its body through."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own way to declare them

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TooLongError(Exception):
    """More text than may come out."""


def main() -> None:
    """Answer until the end of input, or until memory has run out once."""
    lines = iter(sys.stdin.buffer.readline, b"")
    begun = json.loads(next(lines, b"null"))
    if begun is None:
        return
    for number in (signal.SIGPROF, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    seconds, longest = begun["seconds"], begun["longest"]
    _confine(begun["memory"])
    held: list[Template] = []

    def read() -> str:
        held.append(_environment().from_string(begun["source"]))
        return ""

    answer = _within(seconds, read)
    _say(answer)
    for line in lines if "text" in answer else ():
        values: dict[str, Any] = {"tools": None, "documents": None, **json.loads(line)}
        _say(_within(seconds, partial(_whole, held[0].generate(**values), longest)))


def _confine(memory: int) -> None:
    """So many bytes beside what it has already; no file is written, no core, and nothing else is started."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    wanted = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for limit, most in wanted.items():
        hard = resource.getrlimit(limit)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (least, least))


def _within(seconds: float, work: Any) -> dict[str, object]:
    """``{"text": ...}``, or what went wrong under the name of its kind."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return {"text": work()}
    except TemplateSyntaxError as error:
        return {"unreadable": _words(error), "line": error.lineno, "why": error.message or "it cannot be read"}
    except TemplateError as error:
        return {"refused": _words(error)}
    except _TooLongError:
        return {"long": True}
    except MemoryError:
        return {"memory": True}
    except Exception as error:  # noqa: BLE001  # whatever a stranger's template can bring about
        return {"failed": f"{type(error).__name__}: {_words(error)}"}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _whole(pieces: Iterator[str], longest: int) -> str:
    found: list[str] = []
    room = longest
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            raise _TooLongError
        found.append(piece)
    return "".join(found)


def _words(error: Exception) -> str:
    said = str(error)
    return said if len(said) <= _SAID else f"{said[:_SAID]}..."


def _environment() -> ImmutableSandboxedEnvironment:
    made = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    made.filters["tojson"] = _tojson
    made.globals.update(raise_exception=_refuse, strftime_now=_now)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return made


def _say(answer: dict[str, object]) -> None:
    try:
        told = json.dumps(answer)
    except MemoryError:
        told = '{"memory": true}'
    sys.stdout.write(told + "\n")
    sys.stdout.flush()


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own would write ``<`` and ``'`` as HTML needs them, and models were trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> str:
    raise TemplateError(message)


def _now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)


if __name__ == "__main__":
    main()
