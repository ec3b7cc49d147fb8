"""Beam search, with the rules of transformers: twice as many candidates as beams, finished ones kept apart by score."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .arrays import Floats
from .asks import Ask
from .decoder import Memory
from .sampling import Shaper, Top, likeliest, log_softmax
from .voices import Line, check, ends_with

_ENOUGH = 2  # candidates per beam, so that enough go on even if as many as there are beams end


@dataclass(frozen=True, slots=True)
class _Beam:
    """One way that a text may go: its summed log-probability and what was said."""

    score: float
    memory: Memory
    shaper: Shaper
    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    tops: tuple[Top, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A beam's next token. ``ended`` when it is the end token, completes a stop word or is the last that was asked for."""

    beam: int
    token: int
    score: float
    log_prob: float
    ended: bool
    tops: tuple[Top, ...] = ()
    """The likeliest in its place, if asked: of one, or none."""


class BeamSearch:
    """A voice whose memories are its running beams."""

    def __init__(self, ask: Ask, memory: Memory, vocabulary: int) -> None:
        self.done = False
        self._ask = ask
        self._running = [_Beam(0.0, memory, Shaper(ask.sampling, ask.before, ask.ends, vocabulary))]
        self._finished: list[tuple[float, Line]] = []

    def memories(self) -> Sequence[Memory]:
        return [beam.memory for beam in self._running]

    def tokens(self) -> Sequence[int]:
        return [beam.tokens[-1] for beam in self._running]

    def lines(self) -> Sequence[Line]:
        return [line for _, line in self._finished]

    def hear(self, logits: Floats) -> None:
        check(logits)
        width = self._ask.beams.width
        candidates = self._candidates(logits)
        for candidate in candidates[:width]:
            if candidate.ended:
                self._finish(candidate)
        going = [candidate for candidate in candidates if not candidate.ended][:width]
        self.done = not going or self._enough(going[0].score, len(self._running[0].tokens) + 1)
        if not self.done:
            self._go_on(going)

    def _candidates(self, logits: Floats) -> list[_Candidate]:
        """The likeliest continuations of all running beams, best first."""
        shaped = [beam.shaper(row) for beam, row in zip(self._running, logits, strict=True)]
        steps = np.stack([log_softmax(row) for row in shaped])
        scores = (steps + np.array([[beam.score] for beam in self._running], np.float32)).reshape(-1)
        best: list[int] = np.argsort(-scores, kind="stable")[: _ENOUGH * self._ask.beams.width].tolist()
        wanted, found = self._ask.tops, list[_Candidate]()
        tops = [(likeliest(row, wanted),) if wanted else () for row in steps]
        for place in best:
            beam, token = divmod(place, logits.shape[1])
            said = [*self._running[beam].tokens, token]
            ended = token == self._ask.end_id or len(said) >= self._ask.max_tokens or ends_with(said, self._ask)
            found.append(_Candidate(beam, token, float(scores[place]), float(steps[beam, token]), ended, tops[beam]))
        return [candidate for candidate in found if np.isfinite(candidate.score)]

    def _finish(self, candidate: _Candidate) -> None:
        beam, ask = self._running[candidate.beam], self._ask
        length = len(beam.tokens) + 1
        spoken = candidate.token != ask.end_id
        line = Line(
            [*beam.tokens, candidate.token] if spoken else list(beam.tokens),
            [*beam.log_probs, candidate.log_prob] if spoken else list(beam.log_probs),
            tops=[*beam.tops, *candidate.tops] if spoken else list(beam.tops),
        )
        self._finished.append((candidate.score / length**ask.beams.length_penalty, line))
        self._finished.sort(key=lambda pair: -pair[0])
        del self._finished[ask.beams.width :]

    def _enough(self, best_running: float, length: int) -> bool:
        """Whether every beam is done and none that runs can better the worst of them (or none is to be waited for)."""
        beams = self._ask.beams
        if len(self._finished) < beams.width:
            return False
        return beams.early_stopping or best_running / length**beams.length_penalty <= self._finished[-1][0]

    def _go_on(self, going: list[_Candidate]) -> None:
        """Each candidate becomes a running beam; the last child of a beam takes over its memory, those before it a fork."""
        beams: list[_Beam] = []
        forks = [candidate.beam for candidate in going]
        for place, candidate in enumerate(going):
            parent = self._running[candidate.beam]
            last = candidate.beam not in forks[place + 1 :]
            memory, shaper = (parent.memory, parent.shaper) if last else (parent.memory.fork(), parent.shaper.fork())
            beams.append(
                _Beam(
                    candidate.score,
                    memory,
                    shaper,
                    (*parent.tokens, candidate.token),
                    (*parent.log_probs, candidate.log_prob),
                    (*parent.tops, *candidate.tops),
                )
            )
        for beam in beams:
            beam.shaper.heard(beam.tokens[-1])
        self._running = beams
