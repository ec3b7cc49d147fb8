"""KServe v2 over grpc.aio: the same calls and words as ``forge.client.grpc``, awaited."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import cached_property
from types import TracebackType
from typing import Any, cast

from forge.client.answer import Answer, Hearing
from forge.client.grpc import CHANNEL, METADATA_SECONDS, Calls, closed, is_unknown, with_adapter
from forge.client.response import Ear
from forge.client.silence import Silence
from forge.client.tensors import inputs_of
from forge.client.turns import Turns, counting, stops_of
from forge.client.types import Chunk, ModelMetadata, Request
from forge.client.wire import Configured, Described, RpcError, Server, Statistics, StreamResponse
from forge.errors import InferenceError


class AsyncClient:
    """``forge.client.Client`` for asyncio: one channel carries as many requests at once as there are tasks that ask.

    The channel is made by the first call and belongs to the event loop of that call. Cancelling a task that awaits an answer
    cancels its request at the server.
    """

    def __init__(self, address: str, *, timeout: float | None = None) -> None:
        self._calls = Calls(address, timeout)
        self._closed = False

    @cached_property
    def _channel(self) -> Any:
        import grpc.aio

        return grpc.aio.insecure_channel(self._calls.address, options=CHANNEL)

    @cached_property
    def _stub(self) -> Any:
        return self._calls.stub(self._channel)

    @cached_property
    def _stream(self) -> Any:
        return self._calls.stream(self._channel)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; answers under way are cancelled."""
        self._closed = True
        await self._channel.close()

    async def metadata(self, model: str, *, anew: bool = False) -> ModelMetadata:
        """What ``model`` takes and gives, and whether it can stream. Asked once, again after a failed request or of another
        server, and ``anew``: a model may have been loaded with other inputs. What was known holds until the answer is there."""
        import grpc

        self._require_open()
        if self._channel.get_state() is not grpc.ChannelConnectivity.READY:  # another server may answer next
            self._calls.known.clear()
        held = self._calls.known.get(model)
        return held if held and not anew else await self._described(model)

    async def _described(self, model: str) -> ModelMetadata:
        messages = self._calls.messages
        async with self._translated(model):
            described: Described = await self._stub.ModelMetadata(
                messages.ModelMetadataRequest(name=model), timeout=METADATA_SECONDS
            )
            configured: Configured = await self._stub.ModelConfig(
                messages.ModelConfigRequest(name=model), timeout=METADATA_SECONDS
            )
        return self._calls.learn(model, described, configured)

    async def models(self) -> tuple[str, ...]:
        """The models that are ready."""
        request = self._calls.messages.ModelStatisticsRequest()
        async with self._translated(""):
            found: Statistics = await self._stub.ModelStatistics(request, timeout=METADATA_SECONDS)
        return tuple(dict.fromkeys(entry.name for entry in found.model_stats))

    async def version(self) -> str:
        """Triton's version, as it says it."""
        async with self._translated(""):
            told: Server = await self._stub.ServerMetadata(
                self._calls.messages.ServerMetadataRequest(), timeout=METADATA_SECONDS
            )
        return told.version

    async def generate(self, request: Request) -> AsyncGenerator[Chunk]:
        """The answer's chunks as they come, the last one ``final``. ``aclose()`` cancels the request at the server."""
        known, began = await self.metadata(request.model), time.monotonic()
        turns = Turns(request, known)
        for each in turns.requests():
            async with aclosing(self._turn(each, known, began)) as chunks:
                async for chunk in chunks:
                    yield turns.hear(chunk)

    async def _turn(self, request: Request, known: ModelMetadata, began: float) -> AsyncGenerator[Chunk]:
        """One request, and where the server lacks its adapter another that brings it."""
        again: Request | None = None
        try:
            async with aclosing(self._once(request, known, began)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except InferenceError as error:
            if (again := with_adapter(request, error)) is None:
                raise
        if again is not None:
            async with aclosing(self._once(again, known, began)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _once(self, request: Request, known: ModelMetadata, began: float) -> AsyncGenerator[Chunk]:
        """One request; it is cancelled where its iterator is closed, and where every sequence has come to a stop text."""
        ear, calls, stops = Ear(request, known), self._calls, stops_of(request)
        message = calls.message(request.model, inputs_of(request, known))
        call = self._stream(message, timeout=calls.left(time.monotonic() - began))
        ended, silence = False, Silence(request, f"{request.model} at {calls.address}")
        responses: AsyncIterator[StreamResponse] = aiter(call)
        try:
            async with self._translated(request.model):
                while (response := await _next(responses, silence)) is not None:
                    answer, final = calls.opened(request.model, response)
                    for chunk in stops.hear(ear.hear(answer, time.monotonic() - began, final=final)):
                        yield chunk
                    ended = ended or final or stops.reached
                    if stops.reached:
                        break
            if not ended:
                for chunk in stops.hear(ear.end(time.monotonic() - began)):
                    yield chunk
        finally:
            call.cancel()

    async def ask(self, request: Request) -> Answer:
        """The whole answer, however it comes: every sequence, log-probabilities where they were asked for, and how fast."""
        hearing = Hearing(request)
        async with aclosing(self.generate(counting(request))) as chunks:
            async for chunk in chunks:
                hearing.hear(chunk)
        return hearing.answer()

    def _require_open(self) -> None:
        if self._closed:
            raise closed(self._calls.address)

    @asynccontextmanager
    async def _translated(self, model: str) -> AsyncGenerator[None]:
        import grpc

        self._require_open()
        try:
            yield
        except grpc.RpcError as error:
            failure = cast("RpcError", error)
            raise self._calls.fixed(model, failure, await self.models() if is_unknown(failure) else ()) from error


async def _next(responses: AsyncIterator[StreamResponse], silence: Silence) -> StreamResponse | None:
    """The next response, None after the last; InferenceError where it does not come in time."""
    try:
        async with asyncio.timeout(silence.limit):
            response = await anext(responses, None)
    except TimeoutError as error:
        raise silence.error() from error
    silence.heard()
    return response
