"""Speak to served models from Python. See docs/client.md.

from forge.client import Client, Request

with Client("127.0.0.1:8001") as client:
    for chunk in client.generate(Request("tensorrt_llm_bls", "Why is the sky blue?", max_tokens=64)):
        print(chunk.text, end="", flush=True)

These are the few calls of KServe v2 that forge makes, over tritonclient's generated messages, with gRPC's failures as ours; so
they work with any Triton that serves TensorRT-LLM's models, whoever built them. ``Calls`` is what both clients share and is
pure; ``Client`` waits for its answers, ``forge.client.grpc_aio.AsyncClient`` does not.
"""

import importlib
import re
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from types import TracebackType
from typing import Any, cast

from msgspec.structs import replace

from forge.client.answer import Answer, Hearing
from forge.client.lora import MISSING
from forge.client.response import Ear, Response
from forge.client.silence import Silence, Watchdog
from forge.client.tensors import LLMAPI, Input, inputs_of
from forge.client.turns import Turns, counting, stops_of
from forge.client.types import Chunk, ModelMetadata, Request, TensorMetadata
from forge.client.vllm import NAMED, UNNAMED
from forge.client.wire import Configured, Described, InferRequest, RpcError, Server, Statistics, StreamResponse
from forge.errors import InferenceError, Trouble
from forge.schema.vllm_images import VERSION

LARGEST = 256 * 2**20
"""Bytes of one message that a server may answer with, as sent and inflated: 128,000 tokens that are not streamed, with the 20
likeliest in the place of each, have fewer."""
CHANNEL = (
    ("grpc.max_receive_message_length", LARGEST),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 1000),  # one that died is back in some seconds: grpc looks again after two minutes
    ("grpc.enable_http_proxy", 0),  # a server on the loopback is not behind the company's proxy
)
METADATA_SECONDS = 30.0
FULL = ("limits.max_queued", "maximum queue size")
"""What forge's bls says where as many requests wait as may, and for a ``max_queue_size`` Triton and TensorRT-LLM, each in small
or capital letters."""
_STUB = re.compile(r"stub process '(?P<instance>[^']+)'", re.IGNORECASE)
"""How Triton's Python backend speaks of a process that is gone or does not move: it names the instance, MODEL_0_0."""


class Calls:
    """What is asked of one server, and what its answers mean; nothing here waits for anything.

    tritonclient's modules have no types: those of the messages are in ``forge.client.wire``.
    """

    def __init__(self, address: str, timeout: float | None) -> None:
        self.address = address
        self.timeout = timeout
        self.known: dict[str, ModelMetadata] = {}
        """By model. Forgotten when the model fails a request: it may have been loaded anew, with other inputs."""
        self.messages: Any = importlib.import_module("tritonclient.grpc.service_pb2")

    def stub(self, channel: Any) -> Any:
        """GRPCInferenceServiceStub."""
        return importlib.import_module("tritonclient.grpc.service_pb2_grpc").GRPCInferenceServiceStub(channel)

    def stream(self, channel: Any) -> Any:
        """ModelStreamInfer for one request, in one piece: the stub's own takes a task or thread and three turns."""
        sent, read = (getattr(self.messages, name) for name in ("ModelInferRequest", "ModelStreamInferResponse"))
        return channel.unary_stream("/inference.GRPCInferenceService/ModelStreamInfer", sent.SerializeToString, read.FromString)

    def learn(self, model: str, described: Described, configured: Configured) -> ModelMetadata:
        """Keep what a model says of itself."""
        inputs, outputs = (
            {each.name: TensorMetadata(each.name, each.datatype, tuple(each.shape)) for each in tensors}
            for tensors in (described.inputs, described.outputs)
        )
        parameters = configured.config.parameters
        stated = parameters["accumulate_tokens"].string_value if "accumulate_tokens" in parameters else ""
        repeats = stated.strip().lower() in ("true", "1", "yes", "t") or f"{LLMAPI}max_tokens" in inputs
        decoupled = configured.config.model_transaction_policy.decoupled
        vllm = parameters[VERSION].string_value if VERSION in parameters else ""
        self.known[model] = ModelMetadata(model, inputs, outputs, decoupled, repeats, vllm)
        return self.known[model]

    def left(self, passed: float) -> float | None:
        """Seconds that an answer has after so many, whatever requests it takes."""
        return None if self.timeout is None else max(self.timeout - passed, 0.0)

    def message(self, model: str, inputs: Iterable[Input]) -> InferRequest:
        message: InferRequest = self.messages.ModelInferRequest()
        message.model_name, message.id = model, uuid.uuid4().hex
        # Without it the end of a stream that ends in silence would go unseen.
        message.parameters["triton_enable_empty_final_response"].bool_param = True
        for each in inputs:
            tensor = message.inputs.add()
            tensor.name, tensor.datatype = each.name, each.datatype
            tensor.shape.extend(each.shape)
            message.raw_input_contents.append(each.raw)
        return message

    def opened(self, model: str, response: StreamResponse) -> tuple[Response, bool]:
        """The answer within a response, and whether it is the last."""
        if response.error_message:
            self.known.pop(model, None)
            raise _refused(response.error_message, f"{model} at {self.address}")
        answer = response.infer_response
        return answer, answer.parameters["triton_final_response"].bool_param

    def fixed(self, model: str, error: RpcError, offered: Sequence[str]) -> InferenceError:
        """gRPC's failure in words; ``offered`` are the models that are ready, where the failure is one that is not."""
        import grpc

        self.known.pop(model, None)
        code, details = error.code(), error.details() or ""
        where = f"{model} at {self.address}" if model else self.address
        if is_unknown(error):
            ready = ", ".join(offered) or "nothing"
            what = f"the server offers no model {model!r}"
            return InferenceError(what, where=self.address, hint=f"ready: {ready}", trouble=Trouble.UNKNOWN)
        if code is grpc.StatusCode.UNAVAILABLE and not _is_full(details):
            return InferenceError(
                f"no server answers ({details})" if "connect" in details else f"the server went away ({details})",
                where=self.address,
                hint="ask again in some seconds where it died: forge starts it again; `forge status` shows those that run, and "
                "their ports, `forge serve` starts one",
                trouble=Trouble.AWAY,
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return InferenceError(
                f"there was no whole answer within {self.timeout or METADATA_SECONDS:g} s",
                where=where,
                hint="ask for fewer tokens, or allow more time" if self.timeout else _HANGS,
                trouble=Trouble.LATE,
            )
        return _refused(details or str(code), where)


REVIVE = "`forge status` asks every model whether it lives, `forge reload` starts those that do not anew"
"""What to do about a model whose process is dead."""


_HANGS = "the server hangs, or stands still (SIGSTOP, a debugger): `forge status` says which; `forge stop` ends it"


_UNLOADED = "Request for unknown model"
"""What Triton says to a request in a stream; one that a model passes on from another that it calls stands further in."""


_FIXES = (
    (
        re.compile(r"max_?(seq|input|model)_?len|maximum (sequence|input|model|context) length", re.IGNORECASE),
        "ask for fewer tokens, or by a shorter prompt; build.max_seq_len and build.max_input_len of the recipe allow more",
    ),
    (re.compile(r"nothing to go on from|prompt cannot be empty"), "say something that it can go on from"),
    (
        re.compile(r"message larger than max"),
        f"{LARGEST >> 20} MiB are taken at once: ask for a stream, or for fewer tokens; is it a server of forge's?",
    ),
)
"""What Triton's models, forge's and others', refuse, and what to do instead."""


def _is_full(said: str) -> bool:
    return any(words in said.lower() for words in FULL)


def _refused(said: str, where: str) -> InferenceError:
    """What the server itself says of a request."""
    if instance_of(said):
        return InferenceError(said, where=where, hint=REVIVE, trouble=Trouble.DEAD)
    if said.startswith(_UNLOADED):
        return InferenceError(said, where=where, hint=REVIVE, trouble=Trouble.UNKNOWN)
    if UNNAMED in said:
        return InferenceError(said, where=where, hint=NAMED)
    hint = next((hint for words, hint in _FIXES if words.search(said)), "")
    return InferenceError(said, where=where, hint=hint, trouble=Trouble.BUSY if _is_full(said) else Trouble.OTHER)


def instance_of(said: str) -> str:
    """The model's instance whose process Triton says is gone, or does not move; empty where it says no such thing."""
    found = _STUB.search(said)
    return found["instance"] if found else ""


def is_unknown(error: RpcError) -> bool:
    """Whether a call failed because the server has no such model."""
    return "unknown model" in (error.details() or "")


def with_adapter(request: Request, error: InferenceError) -> Request | None:
    """``request`` with its adapter's arrays, where ``error`` is that the server has not got them; None where it is another."""
    task = request.lora_task
    return (
        replace(request, lora_task=task.with_arrays())
        if task and not task.sent and not task.place and MISSING in error.what
        else None
    )


def closed(address: str) -> InferenceError:
    """What there is to say to who asks a client that was closed."""
    hint = "make another, or ask within the `with` block"
    return InferenceError("this client was closed", where=address, hint=hint, trouble=Trouble.AWAY)


def _heard(call: Any, silence: Silence) -> Generator[StreamResponse]:
    """What ``call`` says; InferenceError, and its end at the server, where it is silent for too long."""
    import grpc

    responses: Iterator[StreamResponse] = iter(call)
    with Watchdog(call.cancel) as dog:
        try:
            while (response := dog.next(responses, silence.limit)) is not None:
                yield response
                silence.heard()
        except grpc.RpcError as error:
            if dog.bit:
                raise silence.error() from error
            raise


class Client:
    """One server at ``host:port`` (its gRPC port) over one channel; threads may share it.

    ``timeout`` bounds each whole answer, in seconds; how long one may be silent is its Request's to say. What goes wrong is an
    InferenceError: no server, an unknown model, a word that the model has no input for, a stream from a model that answers
    once, a model that is silent for too long, whatever the server refuses, and asking after ``close``.
    """

    def __init__(self, address: str, *, timeout: float | None = None) -> None:
        import grpc

        self._closed = False
        self._calls = Calls(address, timeout)
        self._channel = grpc.insecure_channel(address, options=CHANNEL)
        self._stub = self._calls.stub(self._channel)
        self._stream = self._calls.stream(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; answers under way are cancelled."""
        self._closed = True
        self._channel.close()

    def metadata(self, model: str, seconds: float = METADATA_SECONDS) -> ModelMetadata:
        """What ``model`` takes and gives, and whether it can stream. Asked once, and again after a failed request; the server
        has ``seconds`` for each of two questions."""
        if held := self._calls.known.get(model):
            return held
        messages = self._calls.messages
        with self._translated(model):
            described: Described = self._stub.ModelMetadata(messages.ModelMetadataRequest(name=model), timeout=seconds)
            configured: Configured = self._stub.ModelConfig(messages.ModelConfigRequest(name=model), timeout=seconds)
        return self._calls.learn(model, described, configured)

    def server(self) -> Server:
        """The server's own name and version."""
        with self._translated(""):
            told: Server = self._stub.ServerMetadata(self._calls.messages.ServerMetadataRequest(), timeout=METADATA_SECONDS)
        return told

    def models(self) -> tuple[str, ...]:
        """The models that are ready. Asked are statistics: forge's servers tell their index to forge alone."""
        request = self._calls.messages.ModelStatisticsRequest()
        with self._translated(""):
            found: Statistics = self._stub.ModelStatistics(request, timeout=METADATA_SECONDS)
        return tuple(dict.fromkeys(entry.name for entry in found.model_stats))

    def generate(self, request: Request) -> Generator[Chunk]:
        """The answer's chunks as they come, the last one ``final``. Closing the generator cancels the request at the server."""
        known, began = self.metadata(request.model), time.monotonic()
        turns = Turns(request, known)
        for each in turns.requests():
            with closing(self._turn(each, known, began)) as chunks:
                for chunk in chunks:
                    yield turns.hear(chunk)

    def _turn(self, request: Request, known: ModelMetadata, began: float) -> Generator[Chunk]:
        """One request, and where the server lacks its adapter another that brings it."""
        try:
            yield from self._once(request, known, began)
        except InferenceError as error:
            if (again := with_adapter(request, error)) is None:
                raise
            yield from self._once(again, known, began)

    def _once(self, request: Request, known: ModelMetadata, began: float) -> Generator[Chunk]:
        """One request; it is cancelled where its iterator is closed, and where every sequence has come to a stop text."""
        ear, calls, stops = Ear(request, known), self._calls, stops_of(request)
        message = calls.message(request.model, inputs_of(request, known))
        with self._translated(request.model):
            call = self._stream(message, timeout=calls.left(time.monotonic() - began))
        ended, silence = False, Silence(request, f"{request.model} at {calls.address}")
        try:
            with self._translated(request.model), closing(_heard(call, silence)) as responses:
                for response in responses:
                    answer, final = calls.opened(request.model, response)
                    yield from stops.hear(ear.hear(answer, time.monotonic() - began, final=final))
                    ended = ended or final or stops.reached
                    if stops.reached:
                        break
            if not ended:
                yield from stops.hear(ear.end(time.monotonic() - began))
        finally:
            call.cancel()

    def tensors(self, model: str, inputs: Iterable[Input], seconds: float | None = None) -> dict[str, bytes]:
        """What a model that answers once says to ``inputs``: its outputs by name, in the protocol's layout. It has ``seconds``,
        or the connection's."""
        found: dict[str, bytes] = {}
        limit = self._calls.timeout if seconds is None else seconds
        with self._translated(model):
            call = self._stream(self._calls.message(model, inputs), timeout=limit)
            for response in call:
                answer, _ = self._calls.opened(model, response)
                found |= {out.name: raw for out, raw in zip(answer.outputs, answer.raw_output_contents, strict=False)}
        return found

    def ask(self, request: Request) -> Answer:
        """The whole answer, however it comes: every sequence, log-probabilities where they were asked for, and how fast."""
        hearing = Hearing(request)
        with closing(self.generate(counting(request))) as chunks:
            for chunk in chunks:
                hearing.hear(chunk)
        return hearing.answer()

    @contextmanager
    def _translated(self, model: str) -> Generator[None]:
        import grpc

        try:
            yield
        except ValueError as error:  # gRPC's own for a channel that was closed
            if self._closed:
                raise closed(self._calls.address) from error
            raise
        except grpc.RpcError as error:
            failure = cast("RpcError", error)
            raise self._calls.fixed(model, failure, self.models() if is_unknown(failure) else ()) from error


class TritonClient:
    """The port of others to a Client; each request has a channel of its own. ``timeout`` bounds a whole answer, in seconds."""

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout

    def generate(self, address: str, request: Request) -> Generator[Chunk]:
        """As ``Client.generate``, of the server at ``address`` (host:port)."""
        with Client(address, timeout=self._timeout) as client, closing(client.generate(request)) as chunks:
            # Closed here and not by the collector, so that the cancel goes out before the channel closes.
            yield from chunks

    def metadata(self, address: str, model: str) -> ModelMetadata:
        """What ``model`` takes and gives."""
        with Client(address, timeout=self._timeout) as client:
            return client.metadata(model)
