"""Sends answers from a thread of its own, in their order: decoding does not wait until Triton has fetched one."""

# Triton puts its classes into pb_utils only after this module was imported: annotations must not look for them yet.
from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial

import triton_python_backend_utils as pb_utils


class Post:
    """A queue of what is to be sent, and the thread that does it; ``close`` returns when all is sent."""

    def __init__(self) -> None:
        self._letters: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, name="sending", daemon=True)
        self._thread.start()

    def send(self, sender: pb_utils.InferenceResponseSender, response: pb_utils.InferenceResponse | None, flags: int) -> None:
        """Queues a response (None: the flags alone) for its sender."""
        self.put(partial(sender.send, flags=flags) if response is None else partial(sender.send, response, flags=flags))

    def put(self, letter: Callable[[], None]) -> None:
        """Queues what sends by itself."""
        self._letters.put(letter)

    def close(self) -> None:
        self._letters.put(None)
        self._thread.join()

    def _deliver(self) -> None:
        while (letter := self._letters.get()) is not None:
            try:
                letter()
            except Exception as error:  # noqa: BLE001 (Triton refuses one response; the other requests' must still go)
                pb_utils.Logger.log_error(f"twin: a response was not sent: {error}")
