"""A server before the real one that lets streamed answers on piece by piece, as a test says, and puts other words in them."""

import importlib
import struct
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from patience import PATIENCE

UNARY = (
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "ModelInfer",
)


@dataclass
class Paced:
    """``go`` lets one piece on; while ``free`` nothing waits. ``left`` is released where a stream's client went away.
    ``says`` are the texts of the next answer's pieces, in place of its own."""

    address: str
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    left: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    free: bool = True
    says: list[str] = field(default_factory=list[str])
    broken: threading.Event = field(default_factory=threading.Event)

    def let(self, count: int) -> None:
        self.free = False
        self.go.release(count)

    def release(self) -> None:
        """Let all on, those too that wait already."""
        self.free = True
        self.go.release(1000)

    def settle(self) -> None:
        """As at the beginning."""
        self.broken.clear()
        self.free, self.says = True, []
        self.go = threading.Semaphore(0)
        while self.left.acquire(blocking=False):
            pass


@contextmanager
def before(real: str) -> Generator[Paced]:
    """Such a server in front of the one at ``real``."""
    grpc: Any = importlib.import_module("grpc")
    stubs: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")

    with grpc.insecure_channel(real) as channel, ThreadPoolExecutor(32) as threads:
        server = grpc.server(threads)
        paced = Paced(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        behind = stubs.GRPCInferenceServiceStub(channel)

        class Pacer(stubs.GRPCInferenceServiceServicer):  # type: ignore[misc]
            def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
                request = next(requests)
                answer = behind.ModelStreamInfer(iter((request,)))
                context.add_callback(answer.cancel)
                gone = threading.Event()
                context.add_callback(gone.set)
                paces, says = _streams(request), paced.says  # an answer that is left says nothing of the next one's words
                for response in answer:
                    while paces and not paced.free and not paced.go.acquire(timeout=0.02):
                        if gone.is_set():
                            paced.left.release()
                            return
                    if paces and paced.broken.is_set():
                        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
                    yield _saying(response, says) if paces else response

        for name in UNARY:
            setattr(Pacer, name, _passed(getattr(behind, name)))
        stubs.add_GRPCInferenceServiceServicer_to_server(Pacer(), server)
        server.start()
        try:
            yield paced
        finally:
            paced.release()
            server.stop(0).wait()


def _passed(call: Any) -> Any:
    """A method that hands its request on."""

    def passed(_: object, request: object, __: object) -> Any:
        return call(request, timeout=PATIENCE)

    return passed


def _streams(request: Any) -> bool:
    """Whether the answer is to come in pieces: what only looks whether a model lives is not held up."""
    names = [tensor.name for tensor in request.inputs]
    return any(request.raw_input_contents[names.index(name)] == b"\1" for name in ("stream", "streaming") if name in names)


def _saying(response: Any, says: list[str]) -> Any:
    if says:
        names = [tensor.name for tensor in response.infer_response.outputs]
        if "text_output" in names:
            text = says.pop(0).encode()
            response.infer_response.raw_output_contents[names.index("text_output")] = struct.pack("<I", len(text)) + text
    return response
