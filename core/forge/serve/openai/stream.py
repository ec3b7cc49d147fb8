"""One answer as it is told to a client: with its log-probabilities, its counts and why it ended. Pure."""

from collections.abc import Callable, Sequence

from msgspec import Struct

from forge.client.answer import Ending, Finish, Piece, apart, pieces
from forge.client.types import Chunk, Request
from forge.serve.openai.calls import Reader, Said

CALLED = "tool_calls"
"""Why an answer ended that calls tools, in the words of OpenAI's API."""
Spans = Callable[[str], Sequence[tuple[str, int]]]


class Counts(Struct, frozen=True):
    """Tokens of a prompt and of an answer."""

    prompt: int
    completion: int


class Telling:
    """Hears the answer to ``request``, cut at its stop texts, and says what is told of it.

    ``count`` gives the number of tokens of a text, 0 where it cannot be known; ``spans`` how it is cut into tokens; ``reader``
    reads calls of tools out of it, where it may have some.
    """

    def __init__(
        self, request: Request, count: Callable[[str], int], spans: Spans = lambda _: (), reader: Reader | None = None
    ) -> None:
        self._count = count
        self._spans = spans
        self._said: list[str] = []
        self._prompt: int | None = None
        self._ending = Ending(request.max_tokens, request.stream)
        self._reader = reader

    def read(self, text: str) -> Said | None:
        """What a person is told of ``text``, and what a program; None where all of it is for a person."""
        return self._reader.hear(text) if self._reader else None

    def rest(self) -> Said | None:
        """What was held back of it to the end."""
        return self._reader.end() if self._reader else None

    def hear(self, chunk: Chunk) -> tuple[Piece, ...]:
        """What is told now."""
        if self._prompt is None:
            self._prompt = chunk.input_tokens
        self._ending.hear(chunk)
        if not (chunk.text or chunk.log_probs):
            return ()
        self._said.append(chunk.text)
        found = pieces(chunk)
        if len(found) == 1 and len(chunk.log_probs) > 1:  # it came whole, of a model that does not say its tokens' texts
            return apart(found[0], self._spans(chunk.text)) or found
        return found

    @property
    def known(self) -> int:
        """New tokens as far as that is known without looking into the text: as the model counts them, or pieces."""
        return self._ending.known or self._ending.pieces

    @property
    def asked(self) -> int | None:
        """Tokens of the prompt, where they are known by now."""
        return self._prompt

    @property
    def completion(self) -> int:
        """New tokens: as the model counts them, by its log-probabilities, by its tokenizer, or by the pieces that came."""
        return self._ending.known or self._by_tokenizer() or self._ending.pieces

    def _by_tokenizer(self) -> int:
        return self._count("".join(self._said))

    def prompt(self, text: str, count: Callable[[str], int]) -> int:
        """Tokens of the prompt: as the model counts them, or by ``count``."""
        if self._prompt is None:
            self._prompt = count(text)
        return self._prompt

    @property
    def told(self) -> bool:
        """Whether the model has said both counts, so that asking for them takes no time."""
        return self._prompt is not None and bool(self._ending.known)

    @property
    def finish(self) -> str:
        """Why it ended (``Ending.finish``); the API has no word for what is not known."""
        found = self._ending.finish(self._by_tokenizer) or Finish.STOP
        return CALLED if found is Finish.STOP and self._reader and self._reader.called else found
