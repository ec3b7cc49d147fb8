"""A build as it goes on, in plain lines or as a structured log, always on standard error."""

import sys
import textwrap
import time
from collections.abc import Callable
from typing import TextIO

import click
from msgspec.structs import asdict

from forge.cli.text import shown, size
from forge.events import Event, Listener

_SILENCE = 10.0
"""Seconds after which what passes by gets a line too."""
_WIDTH = 100


def plain(clock: Callable[[], float] = time.monotonic) -> Listener:
    """A listener with one line per thing that happened; of chunks of bytes and lines of logs, one where it was silent long."""
    last = clock()

    def tell(event: Event) -> None:
        nonlocal last
        if text := _under_way(event) if event.kind == "start" or clock() - last > _SILENCE else sentence(event):
            last = clock()
            click.echo(text, err=True)

    return tell


def _under_way(event: Event) -> str:
    node = f"  on {event.node}" if event.node else ""
    match event.kind:
        case "start":
            return shown(f"...   {event.step}{node}")
        case "log" if event.text.strip():
            return shown(f"...   {event.step}: {textwrap.shorten(event.text, _WIDTH, placeholder=' ...')}{node}")
        case "progress":
            total = f" of {size(event.total)}" if event.total else ""
            return shown(f"...   {event.step}: {size(event.done)}{total}{node}")
        case _:
            return sentence(event)


def sentence(event: Event) -> str:
    """What is worth a line that stays; empty for what only passes by."""
    text = _sentence(event)
    return shown(f"{text}  on {event.node}" if text and event.node and event.kind != "note" else text)


def _sentence(event: Event) -> str:
    match event.kind:
        case "held" | "sent":
            return f"{event.kind}  {event.step}  {size(event.size)}"
        case "made" | "taken":
            what = f"  {size(event.size)}" if event.size else ""
            return f"{event.kind:<4}  {event.step}  {event.seconds:.1f} s{what}"
        case "failed":
            return f"FAILED {event.step}" + (f": {event.text}" if event.text else "")
        case "note":
            return f"note  {event.step}: {event.text}"
        case _:
            return ""


def structured(stream: TextIO = sys.stderr) -> Listener:
    """A listener for ``-v``: each event is one line of a log, for the console on a tty, as JSON otherwise.

    Importing structlog costs 0.1 s, so it is imported here.
    """
    import structlog

    renderer = structlog.dev.ConsoleRenderer() if stream.isatty() else structlog.processors.JSONRenderer()
    log = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"), renderer],
    )

    def write(event: Event) -> None:
        words = {name: value for name, value in asdict(event).items() if value not in ("", 0, 0.0) and name != "kind"}
        if event.kind != "progress":
            log.info(event.kind, **words)

    return write
