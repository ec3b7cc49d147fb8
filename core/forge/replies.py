"""What a model has said: its chunks put together, sequence by sequence, with how sure it was and how fast it came. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from forge.ports import Acceptance, Chunk

BROKEN = "\ufffd"
"""What tokenizers decode to where the last tokens are a part of a character (U+FFFD)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text and the log-probabilities of its tokens: of one, or of those that a character spans."""

    text: str
    log_probs: tuple[float, ...] = ()

    @property
    def probability(self) -> float | None:
        """The geometric mean of its tokens' probabilities; None where they are not known."""
        return math.exp(math.fsum(self.log_probs) / len(self.log_probs)) if self.log_probs else None


@dataclass(frozen=True, slots=True)
class Reply:
    """One sequence of an answer: a sample, or a beam."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    """Its token ids, from a model that gives them."""
    log_probs: tuple[float, ...] = ()
    """Of each token, where they were asked for and the model gives them."""
    cum_log_prob: float | None = None
    """The logarithm of the probability of the whole sequence as the model says it, where it was asked for."""
    pieces: tuple[Piece, ...] = ()
    """As they came; one alone where the answer came whole."""
    stopped: bool = False
    """It ended before one of the request's stop texts."""

    @property
    def log_prob(self) -> float | None:
        """The whole sequence's, as the model says it or as its tokens sum up; None where neither is known."""
        if self.cum_log_prob is not None:
            return self.cum_log_prob
        return math.fsum(self.log_probs) if self.log_probs else None

    @property
    def geometric_mean(self) -> float | None:
        """The geometric mean of its tokens' probabilities, 0 to 1: exp(log-probability / tokens). The inverse of perplexity."""
        count = len(self.log_probs) or len(self.tokens)
        return math.exp(self.log_prob / count) if self.log_prob is not None and count else None

    def spelled(self, spans: Sequence[tuple[str, int]]) -> "Reply":
        """With its pieces cut as ``spans`` say: texts with how many tokens each is made of. Unchanged where they do not fit."""
        if sum(count for _, count in spans) != len(self.log_probs) or "".join(text for text, _ in spans) != self.text:
            return self
        left = iter(self.log_probs)
        return replace(self, pieces=tuple(Piece(text, tuple(islice(left, count))) for text, count in spans))

    def below(self, threshold: float) -> bool | None:
        """Whether its log-probability is less than ``threshold``; None where it is not known."""
        return None if self.log_prob is None else self.log_prob < threshold


@dataclass(frozen=True, slots=True)
class Perf:
    """How fast one answer came, as its client saw it, in seconds.

    Where the model gives no token ids, log-probabilities or counts, and nobody has a tokenizer for the text, a piece is taken
    for a token: ``counted`` is then False.
    """

    first: float
    """From asking to the first piece: the time to first token (TTFT) of a stream."""
    total: float
    """From asking to the end."""
    pieces: int
    """How often something new came, in the sequence that came in most pieces."""
    tokens: int
    """Of all sequences."""
    longest: int
    """Tokens of the longest sequence."""
    counted: bool
    by_tokenizer: bool = False
    """The tokens are those of the text in the model's own tokenizer: a model can write a text in other tokens too."""

    def tokenized(self, counts: Sequence[int]) -> "Perf":
        """With the tokens that a tokenizer finds in each sequence's text, where the model has not counted."""
        if self.counted or not all(counts):
            return self
        return replace(self, tokens=sum(counts), longest=max(counts), counted=True, by_tokenizer=True)

    @property
    def inter_token(self) -> float | None:
        """Mean time between a token and the next (ITL) from the first piece to the end; None where the answer came whole."""
        return (self.total - self.first) / (self.longest - 1) if self.pieces > 1 and self.longest > 1 else None

    @property
    def rate(self) -> float:
        """Tokens per second over the whole answer."""
        return self.tokens / self.total if self.total > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. ``text`` is its first sequence's: the only sample, or the best beam."""

    replies: tuple[Reply, ...]
    perf: Perf
    acceptance: Acceptance | None = None
    input_tokens: int | None = None
    """Tokens of the prompt, where they were asked for and the model counts them."""
    output_tokens: int | None = None
    """Tokens of all sequences, where the model gives or counts them."""

    @property
    def text(self) -> str:
        return self.replies[0].text

    def below(self, threshold: float) -> bool | None:
        """Whether no sequence's log-probability reaches ``threshold``; None where none is known."""
        known = [below for reply in self.replies if (below := reply.below(threshold)) is not None]
        return all(known) if known else None


@dataclass(slots=True)
class _Voice:
    """One sequence as it grows."""

    texts: list[str] = field(default_factory=list[str])
    tokens: list[int] = field(default_factory=list[int])
    log_probs: list[float] = field(default_factory=list[float])
    pieces: list[Piece] = field(default_factory=list[Piece])
    cum_log_prob: float | None = None
    count: int = 0
    stopped: bool = False

    def hear(self, chunk: Chunk) -> None:
        if chunk.whole:
            self.texts, self.tokens, self.log_probs, self.pieces = [], [], [], []
        self.stopped = chunk.stopped or (self.stopped and not chunk.whole)
        self.texts.append(chunk.text)
        self.tokens += chunk.tokens
        self.log_probs += chunk.log_probs
        self.cum_log_prob = self.cum_log_prob if chunk.cum_log_prob is None else chunk.cum_log_prob
        self.count += bool(chunk.text or chunk.tokens or chunk.log_probs)
        # Text that is held back until its character is whole comes with the last of its tokens.
        held = self.pieces.pop() if self.pieces and not self.pieces[-1].text else Piece("")
        piece = Piece(chunk.text, held.log_probs + chunk.log_probs)
        self.pieces += [piece] if piece.text or piece.log_probs else []

    def reply(self) -> Reply:
        joined = "".join(self.texts)
        pieces = tuple(self.pieces)
        return Reply(joined, tuple(self.tokens), tuple(self.log_probs), self.cum_log_prob, pieces, self.stopped)


class Hearing:
    """Takes an answer's chunks as they come."""

    def __init__(self) -> None:
        self._voices: dict[int, _Voice] = {}
        self._first: float | None = None
        self._last = 0.0
        self._counted: int | None = None
        self._input_tokens: int | None = None
        self._acceptance: Acceptance | None = None

    def hear(self, chunk: Chunk) -> None:
        self._last = chunk.seconds
        if chunk.text or chunk.tokens or chunk.log_probs:
            self._first = chunk.seconds if self._first is None else self._first
        if not chunk.final or chunk.text or chunk.tokens or chunk.log_probs or chunk.stopped or chunk.cum_log_prob is not None:
            self._voices.setdefault(chunk.index, _Voice()).hear(chunk)
        if chunk.output_tokens is not None:
            self._counted = chunk.output_tokens + (0 if chunk.whole else self._counted or 0)
        self._input_tokens = self._input_tokens if chunk.input_tokens is None else chunk.input_tokens
        self._acceptance = chunk.acceptance or self._acceptance

    def replies(self) -> tuple[Reply, ...]:
        """What each sequence says so far; an answer of no token has one empty reply."""
        return tuple(voice.reply() for _, voice in sorted(self._voices.items())) or (Reply(),)

    def answer(self) -> Answer:
        replies = self.replies()
        lengths = [len(reply.tokens) or len(reply.log_probs) for reply in replies]
        pieces = [voice.count for voice in self._voices.values()] or [0]
        known = sum(lengths) or self._counted
        single = known if known is not None and len(replies) == 1 else max(lengths)
        perf = Perf(
            first=self._last if self._first is None else self._first,
            total=self._last,
            pieces=max(pieces),
            tokens=sum(pieces) if known is None else known,
            longest=single or max(pieces),
            counted=known is not None,
        )
        return Answer(replies, perf, self._acceptance, self._input_tokens, known)
