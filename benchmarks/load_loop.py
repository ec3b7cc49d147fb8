"""What forge's load loop itself costs: how many requests and chunks a second it can drive, against a bare gRPC loop.

    python benchmarks/load_loop.py [--requests 2000] [--tokens 16] [--concurrency 32]

The server is a gRPC server in a process of its own that answers every request at once with so many one-word chunks: there is
nothing to wait for but the client. On a machine with one free processor the two share it, and the figures are lower bounds.
"""

import argparse
import asyncio
import importlib
import multiprocessing
import struct
import time
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from forge.bench.driver import Ask, Drive, Load
from forge.bench.load import LoopDriver
from forge.client import AsyncClient
from forge.client.types import Request

_WORD = struct.pack("<I", 5) + b" word"


async def _serve(tokens: int, tell: Connection) -> None:
    grpc: Any = importlib.import_module("grpc.aio")
    pb2: Any = importlib.import_module("tritonclient.grpc.service_pb2")
    stubs: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")

    class Answerer(stubs.GRPCInferenceServiceServicer):  # type: ignore[misc]
        async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
            found = pb2.ModelMetadataResponse(name=request.name, platform="fake")
            for name, kind in (("text_input", "BYTES"), ("max_tokens", "INT32"), ("stream", "BOOL")):
                tensor = found.inputs.add()
                tensor.name, tensor.datatype = name, kind
                tensor.shape.extend([-1, 1])
            return found

        async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
            found = pb2.ModelConfigResponse()
            found.config.model_transaction_policy.decoupled = True
            return found

        async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802, ARG002
            async for _ in requests:
                for number in range(tokens):
                    answer = pb2.ModelStreamInferResponse()
                    output = answer.infer_response.outputs.add()
                    output.name, output.datatype = "text_output", "BYTES"
                    output.shape.extend([1, 1])
                    answer.infer_response.raw_output_contents.append(_WORD)
                    answer.infer_response.parameters["triton_final_response"].bool_param = number == tokens - 1
                    yield answer

    server = grpc.server()
    stubs.add_GRPCInferenceServiceServicer_to_server(Answerer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tell.send(port)
    await server.wait_for_termination()


def _run(tokens: int, tell: Connection) -> None:
    asyncio.run(_serve(tokens, tell))


@contextmanager
def _server(tokens: int) -> Generator[str]:
    context = multiprocessing.get_context("spawn")
    hear, tell = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(tokens, tell), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{hear.recv()}"
    finally:
        process.terminate()
        process.join()


async def _bare(address: str, requests: int, concurrency: int) -> None:
    """The least that one can do with grpc.aio: the same message again and again, and every response thrown away."""
    grpc: Any = importlib.import_module("grpc.aio")
    pb2: Any = importlib.import_module("tritonclient.grpc.service_pb2")
    stubs: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")
    left = iter(range(requests))
    async with grpc.insecure_channel(address) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)

        async def caller() -> None:
            for _ in left:
                async for _answer in stub.ModelStreamInfer(iter((pb2.ModelInferRequest(model_name="m"),))):
                    pass

        await asyncio.gather(*(caller() for _ in range(concurrency)))


@contextmanager
def _unwatched() -> Generator[None]:
    yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=32)
    given = parser.parse_args()
    asks = [Ask(Request("m", f"prompt {number}", given.tokens), 2) for number in range(given.requests)]
    with _server(given.tokens) as address:
        drive = Drive(address, "", Load(concurrency=given.concurrency), asks, warm=asks[:32])
        began = time.perf_counter()
        asyncio.run(_bare(address, given.requests, given.concurrency))
        bare = time.perf_counter() - began
        used = time.process_time()
        answers = LoopDriver(AsyncClient, time.perf_counter).drive(drive, _unwatched)
        used = time.process_time() - used
    whole = max(answer.end for answer in answers)
    if any(answer.error or len(answer.marks) != given.tokens for answer in answers):
        raise SystemExit("not every answer came whole")
    for name, seconds in (("bare gRPC loop", bare), ("forge's loop", whole)):
        print(f"{name:15} {given.requests / seconds:8.0f} requests/s {given.requests * given.tokens / seconds:9.0f} chunks/s")
    print(f"processor time of forge's loop: {used / given.requests / given.tokens * 1e6:.0f} us a chunk, requests included")


if __name__ == "__main__":
    main()
