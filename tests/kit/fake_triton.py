"""Triton's Python backend in miniature: the module that a model imports as ``triton_python_backend_utils``.

``install()`` puts this module in that name's place. A request keeps all that was sent back for it; sending after FINAL, or a
second answer of a model that is not decoupled, is refused as the real one refuses it.
"""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from patience import PATIENCE

Array = NDArray[np.generic]

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

_TYPES: Mapping[str, type] = {
    "TYPE_BOOL": np.bool_,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_UINT64": np.uint64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_STRING": np.object_,
}


class TritonModelException(Exception):  # noqa: N818 (Triton's name)
    """What a model raises when it cannot load."""


@dataclass(frozen=True)
class TritonError:
    INTERNAL = 1
    INVALID_ARG = 3
    UNAVAILABLE = 4
    CANCELLED = 7
    text: str
    number: int = 0

    def message(self) -> str:
        return self.text

    def code(self) -> int:
        return self.number


@dataclass(frozen=True, eq=False)
class Tensor:
    label: str
    array: Array

    def name(self) -> str:
        return self.label

    def as_numpy(self) -> Array:
        return self.array


@dataclass(frozen=True, eq=False)
class InferenceResponse:
    tensors: Sequence[Tensor] = ()
    error: TritonError | None = None

    def output_tensors(self) -> list[Tensor]:
        return list(self.tensors)

    def has_error(self) -> bool:
        return self.error is not None


@dataclass(eq=False)
class InferenceResponseSender:
    """What came back: each response (None for flags alone) with its flags."""

    decoupled: bool
    sent: list[tuple[InferenceResponse | None, int]] = field(default_factory=list[tuple[InferenceResponse | None, int]])
    cancelled: bool = False
    after_send: Callable[[int], None] = lambda count: None
    final: threading.Event = field(default_factory=threading.Event)
    seen: threading.Event = field(default_factory=threading.Event)
    """Somebody has looked and found it cancelled."""

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if self.final.is_set():
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        if not self.decoupled and response is None:
            raise TritonModelException("Non-decoupled model cannot send complete final before sending a response.")
        if not self.decoupled and not flags:
            raise TritonModelException("Non-decoupled model cannot send more than one response.")
        self.sent.append((response, flags))
        if flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.final.set()
        self.after_send(len(self.sent))

    def is_cancelled(self) -> bool:
        if self.cancelled:
            self.seen.set()
        return self.cancelled


@dataclass(eq=False)
class InferenceRequest:
    arrays: Mapping[str, Array]
    id: str = ""
    wanted: Sequence[str] = ()
    decoupled: bool = True
    given: str = "{}"
    """Its parameters, as JSON."""
    sender: InferenceResponseSender = field(init=False)

    def __post_init__(self) -> None:
        self.sender = InferenceResponseSender(self.decoupled)

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self.arrays.items()]

    def request_id(self) -> str:
        return self.id

    def parameters(self) -> str:
        return self.given

    def requested_output_names(self) -> list[str]:
        return list(self.wanted)

    def get_response_sender(self) -> InferenceResponseSender:
        return self.sender

    def answers(self, seconds: float = PATIENCE) -> list[Mapping[str, Array]]:
        """The outputs of every response, once the last one has come."""
        assert self.sender.final.wait(seconds), "no FINAL came"
        responses = [response for response, _ in self.sender.sent if response is not None and not response.has_error()]
        return [{tensor.name(): tensor.as_numpy() for tensor in one.output_tensors()} for one in responses]

    def error(self, seconds: float = PATIENCE) -> TritonError | None:
        """The error that was sent, if any, once the last response has come."""
        assert self.sender.final.wait(seconds), "no FINAL came"
        return next((response.error for response, _ in self.sender.sent if response and response.error), None)


class Logger:
    @staticmethod
    def log_info(message: str) -> None:
        """Says nothing."""

    @staticmethod
    def log_error(message: str) -> None:
        """Says nothing."""


def using_decoupled_model_transaction_policy(config: Mapping[str, object]) -> bool:
    policy = cast("Mapping[str, bool]", config.get("model_transaction_policy", {}))
    return policy.get("decoupled", False)


def triton_string_to_numpy(name: str) -> type:
    return _TYPES[name]


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def install() -> None:
    """From now on ``import triton_python_backend_utils`` gives this module."""
    sys.modules["triton_python_backend_utils"] = sys.modules[__name__]
