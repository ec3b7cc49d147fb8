"""Successive halving: all candidates are measured a little, the better half twice as long, and so on to the last two.

K. Jamieson and A. Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization (2016). What is best is
measured once more, by turns with the recipe as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from forge.bench.intervals import mean, ratio
from forge.bench.results import Figure
from forge.bench.tune.goal import Goal
from forge.bench.tune.space import Candidate, Pairs, Value
from forge.errors import BenchError, ForgeError

_LAST = 2
"""Candidates that no further round tells apart."""
Figures = Mapping[str, Figure]


class Trial(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One candidate in one round: what it was measured with, and what came of it."""

    settings: dict[str, Value]
    load: dict[str, Value]
    requests: int
    figures: dict[str, Figure] = {}
    failed: str = ""
    """Why it could not be measured: it does not fit, or does not start."""


class Tuned(Struct, frozen=True, kw_only=True):
    """All rounds, and the end of it: ``best`` and the recipe as it is, measured by turns."""

    goal: str
    limits: tuple[str, ...]
    rounds: tuple[tuple[Trial, ...], ...]
    best: Trial
    before: Trial
    better: bool
    """Whether best is better than before by more than both may be off, or keeps limits that before breaks."""


class Trials(Protocol):
    """Measures candidates of one server: ``loads`` on the recipe with ``settings``."""

    def measure(self, settings: Pairs, loads: Sequence[Pairs], requests: int) -> list[Figures]:
        """The figures under each load, in order; ForgeError where no such server can be had."""
        ...


def search(
    given: Sequence[Candidate], trials: Trials, goal: Goal, requests: int, tell: Callable[[str], None], repeats: int = 3
) -> Tuned:
    """The best of ``given``, whose first round asks ``requests`` of each; BenchError where none can be measured."""
    alive, rounds = list(given), list[tuple[Trial, ...]]()
    while True:
        tell(f"round {len(rounds) + 1}: {len(alive)} settings, {requests} requests each")
        measured = _round(alive, trials, requests)
        rounds.append(tuple(measured[each] for each in alive))
        alive = sorted((each for each in alive if not measured[each].failed), key=lambda it: _rank(goal, measured[it]))[::-1]
        if not alive:
            raise BenchError("none of these settings can be measured", where=rounds[0][0].failed)
        if len(alive) <= _LAST:
            break
        alive = alive[: max(_LAST, len(alive) // 2)]
        requests *= 2
    winner = alive[0]
    before = Candidate((), winner.load)
    tell(f"last: {winner.label}, by turns with the recipe as it is")
    turns = [_round([before, winner], trials, requests) for _ in range(repeats)]  # what else a machine does falls on both
    usual, best = (_over([turn[each] for turn in turns]) for each in (before, winner))
    texts = tuple(each.text for each in goal.limits)
    better = winner != before and not best.failed and (bool(usual.failed) or _better(goal, best.figures, usual.figures))
    return Tuned(goal=goal.figure, limits=texts, rounds=tuple(rounds), best=best, before=usual, better=better)


def _over(turns: Sequence[Trial]) -> Trial:
    """The same candidate measured again and again: the mean of each figure, with its interval."""
    found: dict[str, Figure] = {}
    for name, first in turns[0].figures.items():
        values = tuple(turn.figures[name].value for turn in turns if name in turn.figures)
        over = mean(values)
        found[name] = replace(first, value=over.value, low=over.low, high=over.high, values=values)
    return replace(turns[0], figures=found, failed=next((turn.failed for turn in turns if turn.failed), ""))


def _round(alive: Sequence[Candidate], trials: Trials, requests: int) -> dict[Candidate, Trial]:
    """Every candidate measured, those of one server together."""
    found: dict[Candidate, Trial] = {}
    for settings in dict.fromkeys(each.settings for each in alive):
        mine = [each for each in alive if each.settings == settings]
        said: list[Figures] = [{}] * len(mine)
        failed = ""
        try:
            said = trials.measure(settings, [each.load for each in mine], requests)
        except ForgeError as error:
            failed = str(error)
        for each, figures in zip(mine, said, strict=True):
            found[each] = Trial(
                settings=dict(settings), load=dict(each.load), requests=requests, figures=dict(figures), failed=failed
            )
    return found


def _rank(goal: Goal, trial: Trial) -> tuple[int, float]:
    return goal.rank({name: figure.value for name, figure in trial.figures.items()})


def _better(goal: Goal, best: Figures, before: Figures) -> bool:
    kept, was = (goal.kept({name: each.value for name, each in found.items()}) for found in (best, before))
    if kept != was:
        return kept
    one, other = best[goal.figure], before[goal.figure]
    forward = one.value > other.value if goal.highest else one.value < other.value
    if one.value <= 0 or other.value <= 0:  # no errors at all, for instance: there is no ratio to that
        return forward
    return forward and ratio(one.values, other.values).clear
