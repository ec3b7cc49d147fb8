"""Sends responses from a thread of its own, in their order: decoding does not wait until Triton has fetched one."""

# Triton puts its classes into pb_utils only after this module was imported: annotations must not look for them yet.
from __future__ import annotations

import queue
import threading

import triton_python_backend_utils as pb_utils


class Post:
    """A queue of responses and the thread that sends them; ``close`` returns when all are sent."""

    def __init__(self) -> None:
        self._letters: queue.SimpleQueue[
            tuple[pb_utils.InferenceResponseSender, pb_utils.InferenceResponse | None, int] | None
        ] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, name="sending", daemon=True)
        self._thread.start()

    def send(self, sender: pb_utils.InferenceResponseSender, response: pb_utils.InferenceResponse | None, flags: int) -> None:
        """Queues a response (None: the flags alone) for its sender."""
        self._letters.put((sender, response, flags))

    def close(self) -> None:
        self._letters.put(None)
        self._thread.join()

    def _deliver(self) -> None:
        while (letter := self._letters.get()) is not None:
            sender, response, flags = letter
            try:
                if response is None:
                    sender.send(flags=flags)
                else:
                    sender.send(response, flags=flags)
            except Exception as error:  # noqa: BLE001 (Triton refuses one response; the other requests' must still go)
                pb_utils.Logger.log_error(f"twin: a response was not sent: {error}")
