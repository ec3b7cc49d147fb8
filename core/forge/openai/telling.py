"""One answer as it is told to a client: with its log-probabilities, its counts and why it ended. Pure."""

from collections.abc import Callable
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
    """Hears one answer's chunks, cut at its stop texts, and says what is told of them.

    ``count`` gives the number of tokens of a text, 0 where it cannot be known.
    """

    def __init__(self, limit: int, count: Callable[[str], int]) -> None:
        self._limit = limit
        self._count = count
        self._said: list[str] = []
        self._pieces = 0
        self._log_probs = 0
        self._counted: int | None = None
        self._prompt: int | None = None
        self._stopped = False
        self._unspoken = 0
        """Tokens since the last that brought text."""

    def hear(self, chunk: Chunk) -> tuple[Piece, ...]:
        """What is told now. Several sequences in one response are beams: the best comes first and is the answer."""
        if self._prompt is None:
            self._prompt = chunk.input_tokens
        if chunk.index:
            return ()
        self._stopped = self._stopped or chunk.stopped
        if chunk.output_tokens is not None:
            self._counted = (self._counted or 0) + chunk.output_tokens
        brought = chunk.output_tokens or len(chunk.log_probs) or (self._counted is None and not chunk.final)
        self._unspoken = 0 if chunk.text else self._unspoken + int(brought)
        if not (chunk.text or chunk.log_probs):
            self._pieces += not chunk.final
            return ()
        self._pieces += 1
        self._log_probs += len(chunk.log_probs)
        self._said.append(chunk.text)
        return (Piece(chunk.text, chunk.log_probs),)

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

        Without the model's own count, what came is at least as many tokens as pieces. One token without a text after all
        others is a further end token: it travelled as a stop word, TensorRT-LLM leaves it in the answer, and it may well
        have been the last one allowed. That is seen of streams; of an answer that came whole it is not known.
        """
        if self._stopped:
            return Finish.STOP
        reached = self.completion if self._counted or self._log_probs else max(self.completion, self._pieces)
        return Finish.LENGTH if reached - (self._unspoken == 1) >= self._limit else Finish.STOP
