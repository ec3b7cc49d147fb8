"""One generation as the requests that it takes. Pure: whatever sends them, and brings their chunks."""

from collections.abc import Iterator

from msgspec.structs import replace

from forge.client.stops import Stops
from forge.client.tensors import drawing, offers
from forge.client.types import Chunk, ModelMetadata, Request

_SEEDS = 2**64


class Turns:
    """The requests for one answer: one, and a further one for each sequence that was asked for and did not come.

    NVIDIA's tensorrt_llm_bls has an input for num_return_sequences from 0.14 on and hands it to nobody (up to 1.2 at least);
    before there is none. A further request has the seed that follows.
    """

    def __init__(self, request: Request, model: ModelMetadata) -> None:
        self._request = drawing(request, model)
        self._offered = offers("n", model)
        self._wanted = 1 if (request.beam_width or 1) > 1 else request.n or 1
        self._first = 0
        """The sequence that the request under way begins with."""
        self._given = 0

    def requests(self) -> Iterator[Request]:
        """Each to be sent when the one before has been heard to its end."""
        beams = (self._request.beam_width or 1) > 1
        yield self._request if self._offered or beams or self._wanted == 1 else replace(self._request, n=None)
        self._given = max(self._given, 1)
        while self._given < self._wanted:
            self._first, seed = self._given, self._request.seed
            yield replace(self._request, n=None, seed=None if seed is None else (seed + self._first) % _SEEDS)
            self._given = max(self._given, self._first + 1)

    def hear(self, chunk: Chunk) -> Chunk:
        """``chunk`` of the request under way as one of the whole answer."""
        index = self._first + chunk.index
        self._given = max(self._given, index + 1)
        final = chunk.final and self._given >= self._wanted
        return chunk if (index, final) == (chunk.index, chunk.final) else replace(chunk, index=index, final=final)


def counting(request: Request) -> Request:
    """``request`` for a whole answer: how fast it came is told in tokens, so the model is asked to count them."""
    return replace(request, return_token_counts=True)


def stops_of(request: Request) -> Stops:
    """What one request's stop texts cut off; of a beam search they have to be reached by every beam."""
    return Stops(request.stop, max(request.n or 1, request.beam_width or 1))
