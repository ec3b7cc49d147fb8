"""A server before the real one whose answers begin and never go on, or never begin: a model that hangs."""

import importlib
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from patience import PATIENCE


@dataclass(frozen=True)
class Slow:
    """``begun`` and ``left`` are released once for each request that came, and for each whose client went away."""

    address: str
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    left: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


@contextmanager
def before(real: str, *, mute: bool = False) -> Generator[Slow]:
    """Such a server in front of the one at ``real``: what models take it asks there, and the first piece of an answer too,
    which a ``mute`` one keeps to itself."""
    grpc: Any = importlib.import_module("grpc")
    stubs: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")

    with grpc.insecure_channel(real) as channel, ThreadPoolExecutor(16) as threads:
        server = grpc.server(threads)
        slow = Slow(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        behind = stubs.GRPCInferenceServiceStub(channel)

        class Beginner(stubs.GRPCInferenceServiceServicer):  # type: ignore[misc]
            def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
                return behind.ModelMetadata(request)

            def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
                return behind.ModelConfig(request)

            def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
                gone = threading.Event()
                context.add_callback(slow.left.release)
                context.add_callback(gone.set)
                answer = behind.ModelStreamInfer(iter((next(requests),)))
                first = next(answer)
                if not mute:
                    yield first
                answer.cancel()
                slow.begun.release()
                gone.wait(PATIENCE)

        stubs.add_GRPCInferenceServiceServicer_to_server(Beginner(), server)
        server.start()
        try:
            yield slow
        finally:
            server.stop(0).wait()
