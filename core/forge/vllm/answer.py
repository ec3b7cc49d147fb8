"""One request under way: what the engine says of it becomes responses of Triton, the last of them final."""

# Triton puts its classes into pb_utils only after this module was imported: annotations must not look for them yet.
from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import cast

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from .asks import Ask
from .frames import Message

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Answer:
    """Sends what ``Ask`` wants of what is said. Any thread may call it; nothing is sent after the end."""

    def __init__(self, sender: pb_utils.InferenceResponseSender, ask: Ask) -> None:
        self._sender, self._ask = sender, ask
        self._lock = threading.Lock()
        self._ended, self._spoken = False, False
        # What was said of each answer and holds until something newer is.
        self._reasons = ["None"] * ask.answers
        self._cumulative = [math.nan] * ask.answers  # until log-probabilities are asked for

    def cancelled(self) -> bool:
        """Whether nobody waits for it any more; a round trip to the server."""
        with self._lock:
            return not self._ended and self._sender.is_cancelled()

    def hear(self, message: Message) -> bool:
        """One message of the engine's about this request; True when it was the last."""
        if "error" in message:
            self.fail(str(message["error"]))
            return True
        finished = bool(message["finished"])
        response = pb_utils.InferenceResponse(self._tensors(message))
        with self._lock:
            if not self._ended:
                self._sender.send(response, flags=_FINAL if finished else 0)
                self._ended, self._spoken = finished, True
        return finished

    def fail(self, what: str, *, dead: bool = False) -> None:
        """End it with an error: the request's own, or that the engine is ``dead``."""
        code = pb_utils.TritonError.UNAVAILABLE if dead else pb_utils.TritonError.INVALID_ARG
        error = pb_utils.InferenceResponse(error=pb_utils.TritonError(what, code))
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if not self._spoken:
                self._sender.send(error, flags=_FINAL)
                return
            # An error in one send with FINAL, after tokens, would keep the model from ever unloading (Triton 2.51).
            self._sender.send(error, flags=0)
            self._sender.send(flags=_FINAL)

    def end(self) -> None:
        """End it without a further word."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._sender.send(flags=_FINAL)

    def _tensors(self, message: Message) -> list[pb_utils.Tensor]:
        """An element for each answer; one that has nothing new says nothing."""
        texts, tokens, logprobs = ([value] * self._ask.answers for value in (b"", 0, b"null"))
        prompt = self._ask.prompt if self._ask.echo else ""
        for output in cast("list[Message]", message["outputs"]):
            at = cast("int", output["index"])
            texts[at] = (prompt + str(output["text"])).encode()
            tokens[at] = cast("int", output["tokens"])
            logprobs[at] = str(output.get("logprobs", "null")).encode()
            self._reasons[at] = str(output.get("finish_reason", self._reasons[at]))
            self._cumulative[at] = cast("float", output.get("cumulative_logprob", self._cumulative[at]))
        made: dict[str, Callable[[], NDArray[np.generic]]] = {
            "finish_reason": lambda: np.array([reason.encode() for reason in self._reasons], np.object_),
            "cumulative_logprob": lambda: np.array(self._cumulative, np.float32),
            "logprobs": lambda: np.array(logprobs, np.object_),
            "num_input_tokens": lambda: np.array([message["input_tokens"]], np.uint32),
            "num_output_tokens": lambda: np.array(tokens, np.uint32),
        }
        wanted = (pb_utils.Tensor(name, make()) for name, make in made.items() if name in self._ask.returned)
        return [pb_utils.Tensor("text_output", np.array(texts, np.object_)), *wanted]
