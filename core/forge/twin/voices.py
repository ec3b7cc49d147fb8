"""Sequences on their way: each hears logits and says tokens. One voice is one sample, or one whole beam search."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .arrays import Floats
from .asks import Ask
from .decoder import Memory
from .sampling import Picker, Shaper, Top, likeliest, log_softmax


@dataclass(slots=True)
class Line:
    """What was said so far: tokens without the end token, the logarithm of each one's probability, and, if asked, which were
    the likeliest in its place, and logits."""

    tokens: list[int] = field(default_factory=list[int])
    log_probs: list[float] = field(default_factory=list[float])
    logits: list[Floats] = field(default_factory=list[Floats])
    tops: list[Top] = field(default_factory=list[Top])

    @property
    def cumulative(self) -> float:
        return float(sum(self.log_probs))


class Voice(Protocol):
    """What the batching loop drives: it steps ``memories`` with ``tokens`` and lets the voice hear the logits."""

    done: bool

    def memories(self) -> Sequence[Memory]: ...

    def tokens(self) -> Sequence[int]:
        """The last token of each memory's sequence."""
        ...

    def hear(self, logits: Floats) -> None:
        """Takes logits [memories, vocabulary]; FloatingPointError when they are no numbers."""
        ...

    def lines(self) -> Sequence[Line]:
        """What is said, the best first. A voice that is one sample has one line, which grows."""
        ...


def check(logits: Floats) -> None:
    """FloatingPointError when a model's answer is not a number: its weights are broken, or they overflow float32."""
    if not np.isfinite(logits.max()):
        raise FloatingPointError("the model's logits are not finite numbers")


class Sample:
    """One sampled (or greedy) sequence."""

    def __init__(self, ask: Ask, memory: Memory, sample: int, vocabulary: int) -> None:
        self.done = False
        self._ask, self._memory = ask, memory
        self._shaper = Shaper(ask.sampling, ask.before, ask.ends, vocabulary) if ask.sampling.shapes else None
        self._pick = Picker(ask.sampling, sample)
        self._line = Line()
        self._last: list[int] = []

    def memories(self) -> Sequence[Memory]:
        return (self._memory,)

    def tokens(self) -> Sequence[int]:
        return self._last

    def lines(self) -> Sequence[Line]:
        return (self._line,)

    def hear(self, logits: Floats) -> None:
        check(logits)
        ask, line = self._ask, self._line
        shaped = logits[0] if self._shaper is None else self._shaper(logits[0])
        token = self._pick(shaped)
        if token == ask.end_id:
            self.done = True
            return
        if self._shaper is not None:
            self._shaper.heard(token)
        line.tokens.append(token)
        if ask.log_probs or ask.tops:
            log_probs = log_softmax(shaped)
            line.log_probs += [float(log_probs[token])] * ask.log_probs
            line.tops += [likeliest(log_probs, ask.tops)] * bool(ask.tops)
        if ask.generation_logits:
            line.logits.append(logits[0].copy())
        self._last = [token]
        self.done = len(line.tokens) >= ask.max_tokens or ends_with(line.tokens, ask)


def ends_with(tokens: list[int], ask: Ask) -> bool:
    """Whether the last tokens are one of the stop words; they stay in the answer, as TensorRT-LLM leaves them."""
    return any(tuple(tokens[-len(word) :]) == word for word in ask.stop_words)
