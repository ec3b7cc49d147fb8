"""What a model has said: its chunks put together, sequence by sequence, with how sure it was and how fast it came. Pure."""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import islice

from msgspec import Struct, field
from msgspec.structs import replace

from forge.client.types import Acceptance, Alternative, Chunk, Request

BROKEN = "\ufffd"
"""What tokenizers decode to where the last tokens are a part of a character (U+FFFD)."""


class Finish(StrEnum):
    """Why a sequence ended, in the words of OpenAI's API."""

    STOP = "stop"
    """The model ended it, or a stop text did."""
    LENGTH = "length"
    """There was no room for more."""


class Piece(Struct, frozen=True):
    """A stretch of text and the log-probabilities of its tokens: of one, or of those that a character spans."""

    text: str
    log_probs: tuple[float, ...] = ()
    alternatives: tuple[tuple[Alternative, ...], ...] = ()
    """For each of its tokens the likeliest in its place, where they were asked for."""

    @property
    def probability(self) -> float | None:
        """The geometric mean of its tokens' probabilities; None where they are not known."""
        return math.exp(math.fsum(self.log_probs) / len(self.log_probs)) if self.log_probs else None


def apart(piece: Piece, spans: Sequence[tuple[str, int]]) -> tuple[Piece, ...]:
    """``piece`` cut as ``spans`` say: texts with how many tokens each is made of. None where they do not fit it."""
    if sum(count for _, count in spans) != len(piece.log_probs) or "".join(text for text, _ in spans) != piece.text:
        return ()
    left, others = iter(piece.log_probs), iter(piece.alternatives)
    return tuple(Piece(text, tuple(islice(left, count)), tuple(islice(others, count))) for text, count in spans)


def pieces(chunk: Chunk) -> tuple[Piece, ...]:
    """What a chunk brings, token by token where the model says their texts; of those that a character spans the last has it."""
    whole = Piece(chunk.text, chunk.log_probs, chunk.alternatives)
    return (len(chunk.spelled) > 1 and apart(whole, [(text, 1) for text in chunk.spelled])) or (whole,)


class Reply(Struct, frozen=True):
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
    finish: Finish | None = None
    """Why it ended; None where nobody knows (``Ending.finish``)."""

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
        whole = Piece(self.text, self.log_probs, tuple(each for piece in self.pieces for each in piece.alternatives))
        cut = apart(whole, spans)
        return replace(self, pieces=cut) if cut else self

    def below(self, threshold: float) -> bool | None:
        """Whether its log-probability is less than ``threshold``; None where it is not known."""
        return None if self.log_prob is None else self.log_prob < threshold


class Perf(Struct, frozen=True):
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


class Answer(Struct, frozen=True):
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


class Ending(Struct):
    """Hears one sequence's chunks, counts its tokens, and says why it ended: the one rule of every client.

    The answer may have ``limit`` tokens, and ``streams``, or comes whole.
    """

    limit: int
    streams: bool
    pieces: int = 0
    """Chunks, less a last one that brought nothing."""
    ids: int = 0
    log_probs: int = 0
    counted: int | None = None
    """Tokens as the model counts them."""
    stopped: bool = False
    _stated: str = ""
    _unspoken: int = 0
    """Tokens since the last that brought text."""

    def hear(self, chunk: Chunk) -> None:
        if chunk.whole:
            self.pieces, self.ids, self.log_probs, self.counted, self.stopped = 0, 0, 0, None, False
        self.stopped = self.stopped or chunk.stopped
        self._stated = chunk.finish or self._stated
        if chunk.output_tokens is not None:
            self.counted = (self.counted or 0) + chunk.output_tokens
        brought = chunk.output_tokens or len(chunk.log_probs) or (self.counted is None and not chunk.final)
        self._unspoken = 0 if chunk.text or chunk.tokens else self._unspoken + int(brought)
        self.pieces += bool(chunk.text or chunk.log_probs or chunk.tokens or not chunk.final)
        self.ids += len(chunk.tokens)
        self.log_probs += len(chunk.log_probs)

    @property
    def known(self) -> int:
        """Its tokens, by the model; 0 where that says nothing of them."""
        return self.ids or self.counted or self.log_probs

    def finish(self, by_tokenizer: Callable[[], int] = lambda: 0) -> Finish | None:
        """``by_tokenizer``: counts the tokens of its text, 0 where that is not known.

        A model that says why it ended is believed. Of others, as many tokens as were allowed mean that there was no room for
        more, unless the last one of a stream brought no text: that is a further end token, which travelled as a stop word and
        which TensorRT-LLM leaves in the answer. Of what came whole, each token's text is not known: LENGTH is said there,
        which is the likelier by far, and does no harm where it is wrong. Who does not count sends a piece for each token, and
        where such an answer came whole the tokenizer's count has to do; without it the end is not known: None.
        """
        if self._stated:
            return Finish.STOP if self._stated == Finish.STOP or self.stopped else Finish.LENGTH
        if self.stopped:
            return Finish.STOP
        reached = self.known or max(by_tokenizer(), self.pieces if self.streams else 0)
        if not reached and not self.streams:
            return None
        return Finish.LENGTH if reached - (self._unspoken == 1) >= self.limit else Finish.STOP


class _Voice(Struct):
    """One sequence as it grows."""

    ending: Ending
    texts: list[str] = field(default_factory=list[str])
    tokens: list[int] = field(default_factory=list[int])
    log_probs: list[float] = field(default_factory=list[float])
    pieces: list[Piece] = field(default_factory=list[Piece])
    cum_log_prob: float | None = None
    count: int = 0

    def hear(self, chunk: Chunk) -> None:
        if chunk.whole:
            self.texts, self.tokens, self.log_probs, self.pieces = [], [], [], []
        self.ending.hear(chunk)
        self.texts.append(chunk.text)
        self.tokens += chunk.tokens
        self.log_probs += chunk.log_probs
        self.cum_log_prob = self.cum_log_prob if chunk.cum_log_prob is None else chunk.cum_log_prob
        self.count += bool(chunk.text or chunk.tokens or chunk.log_probs)
        for new in pieces(chunk):
            # Text that is held back until its character is whole comes with the last of its tokens.
            held = self.pieces.pop() if self.pieces and not self.pieces[-1].text else Piece("")
            piece = Piece(new.text, held.log_probs + new.log_probs, held.alternatives + new.alternatives)
            self.pieces += [piece] if piece.text or piece.log_probs else []

    def reply(self, count: Callable[[str], int], *, apart: bool) -> Reply:
        joined = "".join(self.texts)
        ending = self.ending if apart else replace(self.ending, counted=None)
        return Reply(
            joined,
            tuple(self.tokens),
            tuple(self.log_probs),
            self.cum_log_prob,
            tuple(self.pieces),
            ending.stopped,
            ending.finish(lambda: count(joined)),
        )


class Hearing:
    """Takes the chunks of ``request``'s answer as they come."""

    def __init__(self, request: Request) -> None:
        self._request = request
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
            self._voice(chunk.index).hear(chunk)
        elif chunk.finish and chunk.index in self._voices:
            self._voices[chunk.index].ending.hear(chunk)
        if chunk.output_tokens is not None:
            self._counted = chunk.output_tokens + (0 if chunk.whole else self._counted or 0)
        self._input_tokens = self._input_tokens if chunk.input_tokens is None else chunk.input_tokens
        self._acceptance = chunk.acceptance or self._acceptance

    def _voice(self, index: int) -> _Voice:
        return self._voices.setdefault(index, _Voice(Ending(self._request.max_tokens, self._request.stream)))

    def replies(self, count: Callable[[str], int] = lambda _: 0) -> tuple[Reply, ...]:
        """What each sequence says so far; an answer of no token has one empty reply.

        ``count`` gives the number of tokens of a text, 0 where it is not known (``Ending.finish``).
        """
        voices = [voice for _, voice in sorted(self._voices.items())]
        apart = all(voice.ending.counted is not None for voice in voices)  # or it is one count for all that a response brought
        return tuple(voice.reply(count, apart=apart) for voice in voices) or (Reply(finish=Finish.STOP),)

    def answer(self, count: Callable[[str], int] = lambda _: 0) -> Answer:
        """The whole of it; ``count`` as for ``replies``."""
        replies = self.replies(count)
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
