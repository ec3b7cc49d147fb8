"""Triton's gRPC messages and modules as far as forge reads them: tritonclient's, which have no types of their own."""

from collections.abc import Mapping, MutableSequence, Sequence
from typing import Protocol

from forge.client.response import Response
from forge.protobuf import ModelConfig


class _Tensor(Protocol):
    name: str
    datatype: str
    shape: Sequence[int]


class Described(Protocol):
    """ModelMetadataResponse."""

    inputs: Sequence[_Tensor]
    outputs: Sequence[_Tensor]


class _Parameter(Protocol):
    bool_param: bool


class _RequestTensor(Protocol):
    name: str
    datatype: str
    shape: MutableSequence[int]


class InferRequest(Protocol):
    """ModelInferRequest."""

    model_name: str
    id: str
    raw_input_contents: MutableSequence[bytes]

    @property
    def inputs(self) -> "_Tensors": ...
    @property
    def parameters(self) -> Mapping[str, _Parameter]: ...


class _Tensors(Protocol):
    def add(self) -> _RequestTensor: ...


class _InferResponse(Response, Protocol):
    @property
    def parameters(self) -> Mapping[str, _Parameter]: ...


class StreamResponse(Protocol):
    """ModelStreamInferResponse."""

    error_message: str
    infer_response: _InferResponse


class Configured(Protocol):
    """ModelConfigResponse."""

    config: ModelConfig


class Server(Protocol):
    """ServerMetadataResponse."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...


class _Counted(Protocol):
    name: str


class Statistics(Protocol):
    """ModelStatisticsResponse: of every version of every model that is ready, where none is named."""

    model_stats: Sequence[_Counted]


class RpcError(Protocol):
    """What grpc says of a call that failed."""

    def code(self) -> object: ...
    def details(self) -> str | None: ...
