"""A server that is no Triton of forge's, and answers with more than anybody can hold: it is refused, and in words."""

import asyncio
import importlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from forge.client import Client, Request
from forge.client.grpc import LARGEST
from forge.client.grpc_aio import AsyncClient
from forge.errors import InferenceError
from patience import PATIENCE

pb: Any = importlib.import_module("tritonclient.grpc.service_pb2")
GZIP = grpc.Compression.Gzip


class Bomb(grpc.GenericRpcHandler):
    """Tells of a model as Triton does, and answers with ``size`` zeros, in a thousandth of that where they are compressed."""

    def __init__(self, size: int, compression: grpc.Compression) -> None:
        self._answer, self._compression = bytes(size), compression

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        metadata, config = pb.ModelMetadataResponse(name="m"), pb.ModelConfigResponse()
        config.config.model_transaction_policy.decoupled = True
        for name, kind in (("text_input", "BYTES"), ("max_tokens", "INT32")):
            metadata.inputs.add(name=name, datatype=kind, shape=[1])
        told: Any = {"ModelMetadata": metadata, "ModelConfig": config}.get(handler_call_details.method.rpartition("/")[2])

        def tell(request: bytes, context: grpc.ServicerContext) -> bytes:
            del request, context
            return bytes(told.SerializeToString())

        def answer(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            del request
            context.set_compression(self._compression)
            yield self._answer

        made: Any = grpc
        return made.unary_unary_rpc_method_handler(tell) if told else made.unary_stream_rpc_method_handler(answer)


@contextmanager
def serving(bomb: Bomb) -> Generator[str]:
    """Its address."""
    made = grpc.server(ThreadPoolExecutor(2), handlers=[bomb], options=(("grpc.max_send_message_length", -1),))
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        made.stop(None).wait(PATIENCE)


def ask(address: str) -> None:
    with Client(address, timeout=PATIENCE) as client:
        client.ask(Request("m", "x", max_tokens=1))


def await_(address: str) -> None:
    async def asked() -> None:
        async with AsyncClient(address, timeout=PATIENCE) as client:
            await client.ask(Request("m", "x", max_tokens=1))

    asyncio.run(asked())


@pytest.mark.parametrize(("ask", "compression"), [(ask, GZIP), (await_, grpc.Compression.NoCompression)])
def test_a_message_too_large_is_refused_not_held(ask: Callable[[str], None], compression: grpc.Compression) -> None:
    with serving(Bomb(LARGEST + 1, compression)) as address, pytest.raises(InferenceError, match="larger than max") as error:
        ask(address)
    assert "256 MiB" in error.value.hint
