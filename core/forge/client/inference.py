"""Asks a served model for text: the port ``Client``, with a connection of its own for each request."""

from collections.abc import Generator
from contextlib import closing

from forge.client.grpc import Connection
from forge.client.types import Chunk, ModelMetadata, Request


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
