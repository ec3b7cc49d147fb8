"""What is wanted: limits that have to be kept, and the figure that is to be best under them. Pure."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from forge.bench import figures
from forge.bench.compare import Limit, limit
from forge.errors import BenchError, meant

QUALITY = "quality"
"""The share of the prompts of a quality file that passed: a figure here, which is measured apart from the others."""
SHORT = {"tokens_per_s": "output_tokens_per_s"}


class Goal(Struct, frozen=True):
    """``figure`` is to be best where all ``limits`` hold."""

    figure: str
    limits: tuple[Limit, ...]

    @property
    def highest(self) -> bool:
        """Whether more of the figure is better."""
        return self.figure == QUALITY or figures.better(self.figure) == "higher"

    @property
    def figures(self) -> tuple[str, ...]:
        """Every figure that is looked at, the chief one first."""
        return tuple(dict.fromkeys((self.figure, *(each.figure for each in self.limits))))

    def rank(self, measured: Mapping[str, float]) -> tuple[int, float]:
        """The greater, the better: who keeps all limits comes before who does not, and who breaks them less before who does
        more. A figure that nobody measured is the worst."""
        if self.figure not in measured:
            return (-1, 0.0)
        over = sum(_excess(each, measured) for each in self.limits)
        if over > 0:
            return (0, -over)
        return (1, measured[self.figure] if self.highest else -measured[self.figure])

    def kept(self, measured: Mapping[str, float]) -> bool:
        return self.rank(measured)[0] == 1


def goal(figure: str, texts: Sequence[str]) -> Goal:
    """``tokens_per_s`` under ``ttft_p95<200ms`` and its like; BenchError for figures that there are not."""
    name = SHORT.get(figure, figure)
    known = (*figures.names(), QUALITY)
    if name not in known or not (name == QUALITY or figures.better(name)):
        raise BenchError(f"{figure!r} cannot be what is best", hint=meant(name, known, ", ".join(known)))
    limits = tuple(_limit(text) for text in texts)
    for each in limits:
        if each.relative:
            raise BenchError("a goal is no ratio to another measurement", where=f"--goal {each.text}")
    return Goal(name, limits)


def _limit(text: str) -> Limit:
    try:
        return limit(text)
    except BenchError as error:
        raise BenchError(error.what, where=f"--goal {text}", hint=error.hint) from None


def _excess(wanted: Limit, measured: Mapping[str, float]) -> float:
    """By which part of it a limit is missed; 0 where it is kept."""
    found = measured.get(wanted.figure)
    if found is None:
        return 1.0
    if wanted.holds(found):
        return 0.0
    return max(abs(found - wanted.value) / abs(wanted.value or 1.0), 1e-9)
