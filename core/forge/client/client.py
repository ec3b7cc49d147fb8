"""Speak to served models from Python, with or without asyncio. See docs/client.md.

from forge.client import Client, Request

with Client("127.0.0.1:8001") as client:
    for chunk in client.generate(Request("tensorrt_llm_bls", "Why is the sky blue?", max_tokens=64)):
        print(chunk.text, end="", flush=True)

Both clients speak KServe v2 over gRPC, so they work with any Triton that serves TensorRT-LLM's models, whoever built them.
"""

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from types import TracebackType

from forge.client.answer import Answer, Perf, Piece, Reply
from forge.client.grpc import Connection, closed
from forge.client.grpc_aio import AsyncConnection
from forge.client.guide import Guide
from forge.client.types import Acceptance, Alternative, Chunk, ModelMetadata, Request, TensorMetadata
from forge.errors import InferenceError

__all__ = [
    "Acceptance",
    "Alternative",
    "Answer",
    "AsyncClient",
    "Chunk",
    "Client",
    "Guide",
    "InferenceError",
    "ModelMetadata",
    "Perf",
    "Piece",
    "Reply",
    "Request",
    "TensorMetadata",
]


class Client:
    """One server at ``host:port`` (its gRPC port) over one channel; threads may share it.

    ``timeout`` bounds each whole answer, in seconds; how long one may be silent is its Request's to say. What goes wrong is an
    InferenceError: no server, an unknown model, a word that the model has no input for, a stream from a model that answers
    once, a model that is silent for too long, whatever the server refuses, and asking after ``close``.
    """

    def __init__(self, address: str, *, timeout: float | None = None) -> None:
        self._connection = Connection(address, timeout)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; answers under way are cancelled."""
        self._connection.close()

    def metadata(self, model: str) -> ModelMetadata:
        """What ``model`` takes and gives, and whether it can stream. Asked once, and again after a failed request."""
        return self._connection.metadata(model)

    def models(self) -> tuple[str, ...]:
        """The models that are ready."""
        return self._connection.ready()

    def generate(self, request: Request) -> Generator[Chunk]:
        """The answer's chunks as they come, the last one ``final``. Closing the generator cancels the request at the server."""
        return self._connection.generate(request)

    def ask(self, request: Request) -> Answer:
        """The whole answer, however it comes: every sequence, log-probabilities where they were asked for, and how fast."""
        return self._connection.ask(request)


class AsyncClient:
    """The same for asyncio: one channel carries as many requests at once as there are tasks that ask.

    The channel is made by the first call and belongs to the event loop of that call. Cancelling a task that awaits an answer
    cancels its request at the server.
    """

    def __init__(self, address: str, *, timeout: float | None = None) -> None:
        self._address = address
        self._timeout = timeout
        self._connection: AsyncConnection | None = None
        self._closed = False

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; answers under way are cancelled."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def metadata(self, model: str, *, anew: bool = False) -> ModelMetadata:
        """What ``model`` takes and gives, and whether it can stream. Asked once, again after a failed request or of another
        server, and ``anew``: a model may have been loaded with other inputs. What was known holds until the answer is there."""
        return await self._connected().metadata(model, anew=anew)

    async def models(self) -> tuple[str, ...]:
        """The models that are ready."""
        return await self._connected().ready()

    async def version(self) -> str:
        """Triton's version, as it says it."""
        return await self._connected().version()

    async def generate(self, request: Request) -> AsyncGenerator[Chunk]:
        """The answer's chunks as they come, the last one ``final``. ``aclose()`` cancels the request at the server."""
        async with aclosing(self._connected().generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def ask(self, request: Request) -> Answer:
        """The whole answer, however it comes: every sequence, log-probabilities where they were asked for, and how fast."""
        return await self._connected().ask(request)

    def _connected(self) -> AsyncConnection:
        if self._closed:
            raise closed(self._address)
        if self._connection is None:
            self._connection = AsyncConnection(self._address, self._timeout)
        return self._connection


class TritonClient:
    """The Client over gRPC; each request has a connection of its own. ``timeout`` bounds a whole answer, in seconds."""

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout

    def generate(self, address: str, request: Request) -> Generator[Chunk]:
        """Stream the answer; the last chunk is final. Closing the iterator cancels the request at the server.

        InferenceError: no server at ``address`` (host:port), an unknown model, a word that the model has no input for, a stream
        from a model that answers once, and whatever the server refuses.
        """
        with closing(Connection(address, self._timeout)) as connection, closing(connection.generate(request)) as chunks:
            # Closed here and not by the collector, so that the cancel goes out before the channel closes.
            yield from chunks

    def metadata(self, address: str, model: str) -> ModelMetadata:
        """What ``model`` takes and gives."""
        with closing(Connection(address, self._timeout)) as connection:
            return connection.metadata(model)
