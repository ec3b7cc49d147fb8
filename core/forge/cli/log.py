"""The structured log: console on a tty, JSON otherwise, always on standard error. Only ``-v`` asks for it."""

import sys
from dataclasses import asdict
from typing import TextIO

from forge.events import Event, Listener


def listener(stream: TextIO = sys.stderr) -> Listener:
    """A listener that writes each event as one log line. Importing structlog costs 0.1 s, so it is imported here."""
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
