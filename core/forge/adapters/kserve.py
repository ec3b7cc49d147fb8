"""The few calls of KServe v2 that forge makes, over tritonclient's generated messages; gRPC's failures, ours."""

import importlib
from collections.abc import Generator, Iterable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

from forge.errors import InferenceError

_CHANNEL = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # a server on the loopback is not behind the company's proxy
)
_METADATA_SECONDS = 10.0


class TensorMetadata(Protocol):
    """An input or output as the server describes it; the first -1 of ``shape`` is the batch."""

    name: str
    datatype: str
    shape: Sequence[int]


class ModelMetadata(Protocol):
    """What a model takes and gives."""

    inputs: Sequence[TensorMetadata]
    outputs: Sequence[TensorMetadata]


class _Parameter(Protocol):
    bool_param: bool


class _RequestTensor(Protocol):
    name: str
    datatype: str
    shape: MutableSequence[int]


class _InferRequest(Protocol):
    model_name: str
    id: str
    raw_input_contents: MutableSequence[bytes]

    @property
    def inputs(self) -> "_Tensors": ...
    @property
    def parameters(self) -> Mapping[str, _Parameter]: ...


class _Tensors(Protocol):
    def add(self) -> _RequestTensor: ...


class InferResponse(Protocol):
    """One response of a model."""

    outputs: Sequence[TensorMetadata]
    raw_output_contents: Sequence[bytes]
    parameters: Mapping[str, _Parameter]


class _StreamResponse(Protocol):
    error_message: str
    infer_response: InferResponse


class _Call(Protocol):
    def __iter__(self) -> Iterator[_StreamResponse]: ...
    def cancel(self) -> bool: ...


class _Policy(Protocol):
    decoupled: bool


class _Config(Protocol):
    model_transaction_policy: _Policy


class _ConfigResponse(Protocol):
    config: _Config


class _IndexEntry(Protocol):
    name: str
    state: str


class _Index(Protocol):
    models: Sequence[_IndexEntry]


class _Messages(Protocol):
    """tritonclient.grpc.service_pb2; the names are the protocol's."""

    def ModelInferRequest(self) -> _InferRequest: ...  # noqa: N802
    def ModelMetadataRequest(self, *, name: str) -> object: ...  # noqa: N802
    def ModelConfigRequest(self, *, name: str) -> object: ...  # noqa: N802
    def RepositoryIndexRequest(self, *, ready: bool) -> object: ...  # noqa: N802


class _Stub(Protocol):
    """tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub."""

    def ModelMetadata(self, request: object, *, timeout: float) -> ModelMetadata: ...  # noqa: N802
    def ModelConfig(self, request: object, *, timeout: float) -> _ConfigResponse: ...  # noqa: N802
    def RepositoryIndex(self, request: object, *, timeout: float) -> _Index: ...  # noqa: N802
    def ModelStreamInfer(self, requests: Iterator[_InferRequest], *, timeout: float | None) -> _Call: ...  # noqa: N802


class _StubModule(Protocol):
    def GRPCInferenceServiceStub(self, channel: object) -> _Stub: ...  # noqa: N802


class _RpcError(Protocol):
    def code(self) -> object: ...
    def details(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Input:
    """One tensor to send; ``raw`` is its content in the protocol's layout: little-endian, strings with their length."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes


class Connection:
    """A channel to one server."""

    def __init__(self, address: str, channel: object, timeout: float | None) -> None:
        self._address = address
        self._timeout = timeout
        self._messages = cast("_Messages", importlib.import_module("tritonclient.grpc.service_pb2"))
        module = cast("_StubModule", importlib.import_module("tritonclient.grpc.service_pb2_grpc"))
        self._stub = module.GRPCInferenceServiceStub(channel)

    def metadata(self, model: str) -> ModelMetadata:
        """Names, types and shapes of a model's tensors."""
        request = self._messages.ModelMetadataRequest(name=model)
        with self._translated(model):
            return self._stub.ModelMetadata(request, timeout=_METADATA_SECONDS)

    def decoupled(self, model: str) -> bool:
        """Whether the model may answer more than once."""
        request = self._messages.ModelConfigRequest(name=model)
        with self._translated(model):
            response = self._stub.ModelConfig(request, timeout=_METADATA_SECONDS)
        return response.config.model_transaction_policy.decoupled

    def ready(self) -> tuple[str, ...]:
        """The models that the server offers."""
        request = self._messages.RepositoryIndexRequest(ready=True)
        return tuple(entry.name for entry in self._stub.RepositoryIndex(request, timeout=_METADATA_SECONDS).models)

    def stream(self, model: str, identity: str, inputs: Iterable[Input]) -> Generator[tuple[InferResponse, bool]]:
        """Each response with whether it is the last; closing the iterator cancels the request at the server."""
        request = self._messages.ModelInferRequest()
        request.model_name, request.id = model, identity
        # Without it the end of a stream that ends in silence would go unseen.
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        for each in inputs:
            tensor = request.inputs.add()
            tensor.name, tensor.datatype = each.name, each.datatype
            tensor.shape.extend(each.shape)
            request.raw_input_contents.append(each.raw)
        call = self._stub.ModelStreamInfer(iter((request,)), timeout=self._timeout)
        try:
            with self._translated(model):
                for response in call:
                    if response.error_message:
                        raise InferenceError(response.error_message, where=f"{model} at {self._address}")
                    answer = response.infer_response
                    yield answer, answer.parameters["triton_final_response"].bool_param
        finally:
            call.cancel()

    @contextmanager
    def _translated(self, model: str) -> Generator[None]:
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            raise self._mended(model, cast("_RpcError", error)) from error

    def _mended(self, model: str, error: _RpcError) -> InferenceError:
        import grpc

        code, details = error.code(), error.details() or ""
        where = f"{model} at {self._address}"
        if "unknown model" in details:
            offered = ", ".join(self.ready()) or "nothing"
            return InferenceError(f"the server offers no model {model!r}", where=self._address, hint=f"ready: {offered}")
        if code is grpc.StatusCode.UNAVAILABLE:
            return InferenceError(
                f"no server answers ({details})" if "connect" in details else f"the server went away ({details})",
                where=self._address,
                hint="start one: `forge serve`; `forge status` shows those that run and their ports",
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return InferenceError(
                f"there was no whole answer within {self._timeout or _METADATA_SECONDS:g} s",
                where=where,
                hint="ask for fewer tokens, or allow more time",
            )
        return InferenceError(details or str(code), where=where)


@contextmanager
def connect(address: str, timeout: float | None) -> Generator[Connection]:
    """A connection to ``host:port``; ``timeout`` bounds a whole answer, in seconds."""
    import grpc

    with grpc.insecure_channel(address, options=_CHANNEL) as channel:
        yield Connection(address, channel, timeout)
