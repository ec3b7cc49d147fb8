"""Two results side by side: what makes them alike or not, the ratio of each figure, and limits that a figure must keep."""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct

from forge.bench import figures, intervals
from forge.bench.results import Figure, Point, Results, Subject
from forge.errors import BenchError, meant

_FREE = ("seed", "repeats", "sampling", "sweep", "quality", "counted", "dataset")
"""Settings that may differ: what was asked shows in ``prompts``, a sweep in its points, and sampling is what is compared."""
_LIMIT = re.compile(r"([a-z0-9_]+)\s*(>=|<=|>|<)\s*(\d+(?:\.\d+)?)\s*(x|us|ms|s|%|)")
_SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_SCALES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "%": 0.01, "": 1.0}
_UNITS: Mapping[str, tuple[str, ...]] = {"us": ("s",), "ms": ("s",), "s": ("s",), "%": ("share",)}
ALIKE = 1.1
"""How far a ratio's interval may reach, up or down, for two figures to be called the same."""
QUALITY = "quality"
"""The score of a point, named beside its figures."""


class Difference(Struct, frozen=True):
    """One thing that is not the same in both. ``unlike``: figures that differ in it say nothing about each other."""

    what: str
    first: str
    second: str
    unlike: bool


class Change(Struct, frozen=True):
    """One figure in both; ``ratio`` is second over first, absent where the first is 0."""

    name: str
    unit: str
    first: float
    second: float
    ratio: intervals.Interval | None
    verdict: str
    """``better``, ``worse``, ``same`` (the interval holds 1 and little else), ``unclear`` (it holds 1, and reaches beyond
    ``ALIKE``), ``unsure`` (one repeat, so no interval), or empty."""


class Pair(Struct, frozen=True):
    """One point of both results."""

    label: str
    first: str
    """Names of the models."""
    second: str
    changes: tuple[Change, ...]


class Comparison(Struct, frozen=True):
    differences: tuple[Difference, ...]
    pairs: tuple[Pair, ...]

    @property
    def unlike(self) -> tuple[Difference, ...]:
        return tuple(each for each in self.differences if each.unlike)


def compare(first: Results, second: Results) -> Comparison:
    """Pairs every point of ``first`` with the one of ``second`` that has the same load; nothing is refused here."""
    pairs = tuple(_pair(one, other) for one, other in _matched(first, second))
    return Comparison((*_differences(first, second), *_left_over(first, second)), pairs)


def require_alike(comparison: Comparison, where: str) -> None:
    """BenchError that names everything in which the two are unlike, or that they have no point in common."""
    if comparison.unlike:
        said = "; ".join(f"{each.what}: {each.first or 'none'} and {each.second or 'none'}" for each in comparison.unlike)
        hint = "measure both under the same load on the same machine; --anyway compares them nevertheless"
        raise BenchError(f"these cannot be compared: {said}", where=where, hint=hint)
    if not comparison.pairs:
        raise BenchError("the two have no point in common", where=where)


# -- what differs


def _differences(first: Results, second: Results) -> Iterator[Difference]:
    yield from _fields(first.settings, second.settings, "", free=_FREE)
    yield from _fields(first.machine, second.machine, "machine ", free=())
    for what, ours, theirs, unlike in (
        ("driver", first.driver, second.driver, True),
        ("counting of tokens", first.settings.counted, second.settings.counted, True),
        ("Triton", first.triton, second.triton, False),
        ("forge", first.forge, second.forge, False),
    ):
        if ours != theirs:
            yield Difference(what, ours, theirs, unlike)
    if first.settings.sampling != second.settings.sampling:
        yield Difference("sampling", _text(first.settings.sampling), _text(second.settings.sampling), unlike=False)
    for one, other in _subjects(first, second):
        yield from _subject(one, other)


def _fields(first: msgspec.Struct, second: msgspec.Struct, prefix: str, free: Sequence[str]) -> Iterator[Difference]:
    for name in first.__struct_fields__:
        ours, theirs = getattr(first, name), getattr(second, name)
        if name not in free and ours != theirs:
            yield Difference(prefix + name.replace("_", " "), _text(ours), _text(theirs), unlike=True)


def _subjects(first: Results, second: Results) -> Iterator[tuple[Subject, Subject]]:
    """Models of the same name, or the only one of each."""
    if len(first.subjects) == len(second.subjects) == 1:
        yield first.subjects[0], second.subjects[0]
        return
    named = {subject.name: subject for subject in second.subjects}
    yield from ((one, named[one.name]) for one in first.subjects if one.name in named)


def _subject(first: Subject, second: Subject) -> Iterator[Difference]:
    """The model itself is what is compared: it may differ in anything, but for what its tokens are."""
    if first.tokenizer != second.tokenizer:
        yield Difference("tokenizer", first.tokenizer[:12], second.tokenizer[:12], unlike=True)
    for name in ("name", "front", "runtime", "image", "trtllm", "entry"):
        ours, theirs = str(getattr(first, name)), str(getattr(second, name))
        if ours != theirs:
            yield Difference(f"model {name}", ours[:24], theirs[:24], unlike=False)
    for step in sorted({*first.keys, *second.keys}):
        ours, theirs = first.keys.get(step, ""), second.keys.get(step, "")
        if ours != theirs:
            yield Difference(f"key of {step}", ours[:12], theirs[:12], unlike=False)


def _left_over(first: Results, second: Results) -> Iterator[Difference]:
    """Points that only one of the two has."""
    ours, theirs = ({_key(point, results): point.label for point in results.points} for results in (first, second))
    if missing := [label for key, label in ours.items() if key not in theirs]:
        yield Difference("points", "; ".join(missing), "", unlike=True)
    if missing := [label for key, label in theirs.items() if key not in ours]:
        yield Difference("points", "", "; ".join(missing), unlike=True)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value[:24]
    return "" if value is None else msgspec.json.encode(value).decode()


# -- figures


def _key(point: Point, results: Results) -> tuple[object, ...]:
    """What a point is found by in the other results: its load and its setting, and its model where there are several."""
    model = point.model if len(results.subjects) > 1 else ""
    return (model, point.concurrency, point.rate, *sorted(point.values.items()))


def _matched(first: Results, second: Results) -> Iterator[tuple[Point, Point]]:
    theirs = {_key(point, second): point for point in second.points}
    for point in first.points:
        if other := theirs.get(_key(point, first)):
            yield point, other


def _pair(first: Point, second: Point) -> Pair:
    names = [name for name in figures.names() if name in first.figures and name in second.figures]
    changes = [_change(name, first.figures[name], second.figures[name]) for name in names]
    if first.quality and second.quality:
        ours, theirs = first.quality, second.quality
        apart = ours.high < theirs.low or theirs.high < ours.low
        alike = "same" if ours.score == theirs.score else "unclear"
        verdict = ("better" if theirs.score > ours.score else "worse") if apart else alike
        ratio = intervals.Interval(theirs.score / ours.score) if ours.score else None
        changes.append(Change(QUALITY, "share", ours.score, theirs.score, ratio, verdict))
    return Pair(first.label, first.model, second.model, tuple(changes))


def _change(name: str, first: Figure, second: Figure) -> Change:
    ours, theirs = first.values or (first.value,), second.values or (second.value,)
    positive = sum(ours) > 0 and sum(theirs) > 0
    ratio = intervals.ratio(theirs, ours) if positive else None
    return Change(name, first.unit, first.value, second.value, ratio, _verdict(ratio, first))


def _verdict(ratio: intervals.Interval | None, figure: Figure) -> str:
    if ratio is None or not figure.better:
        return ""
    if ratio.low is None:
        return "unsure"
    if not ratio.clear:
        return "same" if ratio.within(ALIKE) else "unclear"
    return "better" if (ratio.value > 1) == (figure.better == "higher") else "worse"


# -- limits


class Limit(Struct, frozen=True):
    """A condition under which a build must fail: ``figure`` is above or below ``value``, in its unit or as a ratio."""

    text: str
    figure: str
    sign: str
    value: float
    relative: bool

    def holds(self, measured: float) -> bool:
        return _SIGNS[self.sign](measured, self.value)


def limit(text: str) -> Limit:
    """``ttft_p95>1.05x``, ``ttft_p95>200ms``, ``error_share>1%``, ``output_tokens_per_s<500``; BenchError for anything else."""
    match = _LIMIT.fullmatch(text.strip())
    where = f"--fail-if {text}"
    if match is None:
        raise BenchError("this is no limit", where=where, hint='write it like "ttft_p95>1.05x" or "ttft_p95>200ms"')
    name, sign, number, unit = match.groups()
    known = (*figures.names(), QUALITY)
    if name not in known:
        hint = f"{meant(name, known)} there are: {', '.join(known)}".strip()
        raise BenchError(f"there is no figure {name!r}", where=where, hint=hint)
    is_time = name.rpartition("_")[0] in figures.TIMES or name == "send_delay_p99"
    kind = "s" if is_time else "share" if name.endswith("_share") or name == QUALITY else ""
    if unit != "x" and (kind not in _UNITS.get(unit, (kind,)) or (is_time and not unit)):
        wanted = "ms or s" if is_time else "no unit or %" if kind else "no unit"
        raise BenchError(
            f"{name} is not measured in {unit or 'plain numbers'}", where=where, hint=f"{wanted}, or x for a ratio"
        )
    return Limit(text.strip(), name, sign, float(number) * _SCALES.get(unit, 1.0), unit == "x")


def broken(limits: Sequence[Limit], comparison: Comparison) -> tuple[str, ...]:
    """In words, every limit that holds in a pair. A relative one is on the ratio, an absolute one on the second's figure.

    BenchError where a limit's figure is in no pair, or its ratio cannot be had: such a limit could never fail.
    """
    return tuple(_broken(limits, [(f"{pair.second}, {pair.label}", _seen(pair)) for pair in comparison.pairs]))


def require_absolute(limits: Sequence[Limit]) -> None:
    """BenchError for a ratio where there is one result only."""
    if relative := [each.text for each in limits if each.relative]:
        raise BenchError("a ratio needs two results", where=relative[0], hint="forge bench compare A B --fail-if ...")


def exceeded(limits: Sequence[Limit], results: Results) -> tuple[str, ...]:
    """The same for one benchmark alone, which knows absolute limits only."""
    return tuple(_broken(limits, [(f"{point.model}, {point.label}", _alone(point)) for point in results.points]))


_Seen = Mapping[str, tuple[float, float | None]]
"""Figure -> its value and its ratio."""


def _seen(pair: Pair) -> _Seen:
    return {each.name: (each.second, each.ratio.value if each.ratio else None) for each in pair.changes}


def _alone(point: Point) -> _Seen:
    found: dict[str, tuple[float, float | None]] = {name: (figure.value, None) for name, figure in point.figures.items()}
    return found | ({QUALITY: (point.quality.score, None)} if point.quality else {})


def _broken(limits: Sequence[Limit], places: Sequence[tuple[str, _Seen]]) -> Iterator[str]:
    for each in limits:
        judged = 0
        for label, seen in places:
            value, ratio = seen.get(each.figure, (None, None))
            measured = ratio if each.relative else value
            if measured is None:
                continue
            judged += 1
            if each.holds(measured):
                yield f"{each.text}: it is {measured:.4g}{'x' if each.relative else ''} ({label})"
        if not judged:
            raise BenchError("nothing was measured that this limit could judge", where=f"--fail-if {each.text}")
