"""One answer as it is told to a client: cut at stop texts, with its log-probabilities, counted. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from forge.ports import Chunk
from forge.replies import Piece


class Finish(StrEnum):
    """Why an answer ended, in the API's words."""

    STOP = "stop"
    """The model ended it, or a stop text did."""
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of a prompt and of an answer."""

    prompt: int
    completion: int


class Telling:
    """Hears one answer's chunks and says what may be told of them.

    TensorRT-LLM leaves stop words in the answer and the API does not: they are cut off here, so what could be the beginning of
    one is held back. ``count`` gives the number of tokens of a text, 0 where it cannot be known.
    """

    def __init__(self, stops: Sequence[str], limit: int, count: Callable[[str], int]) -> None:
        self._stops = stops
        self._limit = limit
        self._count = count
        self._held: list[Piece] = []
        self._said: list[str] = []
        self._pieces = 0
        self._log_probs = 0
        self._counted: int | None = None
        self._prompt: int | None = None
        self.stopped = False
        """A stop text was reached: nothing that comes after it is told."""

    def hear(self, chunk: Chunk) -> tuple[Piece, ...]:
        """What is told now. Several sequences in one response are beams: the best comes first and is the answer."""
        if self._prompt is None:
            self._prompt = chunk.input_tokens
        if chunk.index or self.stopped:
            return ()
        if chunk.output_tokens is not None:
            self._counted = (self._counted or 0) + chunk.output_tokens
        if not (chunk.text or chunk.log_probs):
            self._pieces += not chunk.final
            return ()
        self._pieces += 1
        self._log_probs += len(chunk.log_probs)
        self._said.append(chunk.text)
        self._held.append(Piece(chunk.text, chunk.log_probs))
        return self._release()

    def end(self) -> tuple[Piece, ...]:
        """What was held back and turned out to be no stop text."""
        told, self._held = tuple(self._held), []
        return told

    @property
    def completion(self) -> int:
        """New tokens: as the model counts them, by its log-probabilities, by its tokenizer, or by the pieces that came."""
        known = self._counted or self._log_probs
        return known or self._count("".join(self._said)) or self._pieces

    def prompt(self, text: str, count: Callable[[str], int]) -> int:
        """Tokens of the prompt: as the model counts them, or by ``count``."""
        if self._prompt is None:
            self._prompt = count(text)
        return self._prompt

    @property
    def told(self) -> bool:
        """Whether the model has said both counts, so that asking for them takes no time."""
        return self._prompt is not None and bool(self._counted or self._log_probs)

    @property
    def finish(self) -> Finish:
        """The models do not say why they end; as many tokens as were allowed mean that there was no room for more.

        Without the model's own count, what came is at least as many tokens as pieces.
        """
        if self.stopped:
            return Finish.STOP
        reached = self.completion if self._counted or self._log_probs else max(self.completion, self._pieces)
        return Finish.LENGTH if reached >= self._limit else Finish.STOP

    def _release(self) -> tuple[Piece, ...]:
        text = "".join(piece.text for piece in self._held)
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._take(min(places), cut=True)
        return self._take(len(text) - max((_begun(text, stop) for stop in self._stops), default=0), cut=False)

    def _take(self, length: int, *, cut: bool) -> tuple[Piece, ...]:
        """The held pieces within the first ``length`` characters; with ``cut`` the one across that border is shortened."""
        told: list[Piece] = []
        while self._held and len(self._held[0].text) <= length and (length or not cut):
            length -= len(self._held[0].text)
            told.append(self._held.pop(0))
        if cut:
            if length and self._held:
                told.append(Piece(self._held[0].text[:length], self._held[0].log_probs))
            self._held = []
        return tuple(told)


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
