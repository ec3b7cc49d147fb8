"""How work on several threads is ended at once: whoever waits for something outside of Python says how to end that."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Lock


class Halt:
    """Ctrl-C for threads, which the interpreter interrupts only between two of their own steps.

    ``pull`` ends what is waited for now, and whatever begins later; ``reset`` lets work begin again.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._ends: dict[int, Callable[[], None]] = {}
        self._pulled = False
        self._count = 0

    def check(self) -> None:
        """KeyboardInterrupt once it is pulled: for the moments in which a thread has the word."""
        if self._pulled:
            raise KeyboardInterrupt

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Generator[None]:
        """While the block waits, ``end`` makes what it waits for end. KeyboardInterrupt where that came before or has come."""
        with self._lock:
            self.check()
            self._count += 1
            number = self._count
            self._ends[number] = end
        try:
            yield
        except Exception:
            self.check()  # what was ended fails: that is no news
            raise
        finally:
            with self._lock:
                self._ends.pop(number, None)
        self.check()

    def pull(self) -> None:
        """End all that is waited for."""
        with self._lock:
            self._pulled = True
            ends = tuple(self._ends.values())
        for end in ends:
            end()

    def reset(self) -> None:
        self._pulled = False
