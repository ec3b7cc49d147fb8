"""How long a client waits for a served model to say something: for its first response, and between two of them."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from forge.client.types import Request
from forge.errors import InferenceError, Trouble

T = TypeVar("T")


class Silence:
    """The patience of one request's asker. ``where`` is whom it asks, for a person."""

    def __init__(self, request: Request, where: str) -> None:
        self._request = request
        self._where = where
        self._heard = False

    @property
    def limit(self) -> float | None:
        """Seconds that the next response may take; None where it may take for ever."""
        return (self._request.silent_seconds if self._heard else self._request.first_seconds) or None

    def heard(self) -> None:
        """A response has come."""
        self._heard = True

    def error(self) -> InferenceError:
        """What there is to say when the limit is over."""
        said, key = ("no more came for", "silent_seconds") if self._heard else ("the model said nothing for", "first_seconds")
        return InferenceError(
            f"{said} {self.limit:g} s, so the request was given up",
            where=self._where,
            hint="`forge status` asks every model whether it lives, `forge logs` says what happened; to wait longer: "
            f"limits.max_{key} of the recipe, or --{key.replace('_', '-')}; 0 is for ever",
            trouble=Trouble.LATE,
        )


class Watchdog:
    """Ends a call by ``cancel`` when whoever reads it has waited for longer than its limit. ``with`` ends its thread."""

    def __init__(self, cancel: Callable[[], object]) -> None:
        self.bit = False
        """It has ended the call."""
        self._cancel = cancel
        self._changed = threading.Condition()
        self._limit = self._until = math.inf
        self._over = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        if self._thread:
            self._thread.join()

    def next(self, responses: Iterator[T], limit: float | None) -> T | None:
        """The next of ``responses``, None after the last. The time that the reader takes for itself does not count."""
        if limit is not None and limit != self._limit:
            self._expect(limit)
        self._until = math.inf if limit is None else time.monotonic() + limit
        try:
            return next(responses, None)
        finally:
            self._until = math.inf

    def _expect(self, limit: float) -> None:
        """Look so often from now on: each wait begins after the look before it, so none is over sooner than the next look."""
        with self._changed:
            self._limit = limit
            self._changed.notify()
        if not self._thread:
            self._thread = threading.Thread(target=self._run, name="silence", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        with self._changed:
            while not self._over:
                rest = self._until - time.monotonic()
                if rest <= 0:
                    self.bit = True
                    self._cancel()
                    return
                self._changed.wait(min(rest, self._limit, threading.TIMEOUT_MAX))
