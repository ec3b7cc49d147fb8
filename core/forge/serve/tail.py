"""A server's log, line by line, as long as somebody listens."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path


def lines(log: Path, lives: Callable[[], bool] | None = None) -> Iterator[str]:
    """What the log holds; with ``lives`` also what comes, until that says no."""
    with log.open(encoding="utf-8", errors="replace") as text:
        while True:
            yield from (line.rstrip("\n") for line in text)
            if lives is None or not lives():
                return
            time.sleep(0.2)
