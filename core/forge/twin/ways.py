"""The two ways back to whoever made a request: Triton's response sender, and a pipe to forge's own tensorrt_llm_bls."""

# Triton puts its classes into pb_utils only after this module was imported: annotations must not look for them yet.
from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

import triton_python_backend_utils as pb_utils

from .arrays import Array
from .pipe import Pipe
from .post import Post

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Way(Protocol):
    """Takes one request's answers: any number, and then the last one, an error or an end."""

    def gone(self) -> bool:
        """Whether nobody waits for answers any more; may cost a round trip to the server."""
        ...

    def send(self, arrays: Mapping[str, Array], *, last: bool) -> None:
        """One answer: output arrays by name."""
        ...

    def fail(self, what: str) -> None:
        """Ends with an error."""
        ...

    def end(self) -> None:
        """Ends without a further word."""
        ...


class Responses:
    """A Way of Triton's own."""

    def __init__(self, sender: pb_utils.InferenceResponseSender, post: Post, *, decoupled: bool) -> None:
        self._sender, self._post, self._decoupled = sender, post, decoupled
        self._spoken = False

    def gone(self) -> bool:
        return self._sender.is_cancelled()

    def send(self, arrays: Mapping[str, Array], *, last: bool) -> None:
        self._spoken = True
        tensors = [pb_utils.Tensor(name, array) for name, array in arrays.items()]
        self._post.send(self._sender, pb_utils.InferenceResponse(tensors), _FINAL if last else 0)

    def fail(self, what: str) -> None:
        error = pb_utils.InferenceResponse(error=pb_utils.TritonError(what, pb_utils.TritonError.INTERNAL))
        if not self._spoken:
            self._post.send(self._sender, error, _FINAL)
            return
        # An error in one send with FINAL, after tokens, would keep the model from ever unloading (Triton 2.51).
        self._post.send(self._sender, error, 0)
        self._post.send(self._sender, None, _FINAL)

    def end(self) -> None:
        """A model that is not decoupled must send a response all the same."""
        self._post.send(self._sender, None if self._decoupled else pb_utils.InferenceResponse([]), _FINAL)


class Piped:
    """A Way through a pipe; Triton is told the end alone, so that to it the request lasts as long as it does."""

    def __init__(self, pipe: Pipe, sender: pb_utils.InferenceResponseSender, post: Post) -> None:
        self._pipe, self._sender, self._post = pipe, sender, post

    def gone(self) -> bool:
        return self._pipe.gone()

    def send(self, arrays: Mapping[str, Array], *, last: bool) -> None:
        self._post.put(partial(self._pipe.send, arrays, last=last))
        if last:
            self._post.send(self._sender, None, _FINAL)

    def fail(self, what: str) -> None:
        self._post.put(partial(self._pipe.fail, what))
        self._post.send(self._sender, None, _FINAL)

    def end(self) -> None:
        """Whoever still reads has not heard all."""
        self.fail("tensorrt_llm ended the request before its answer was whole: it was stopped, or unloaded")
