"""A plan as a graph, from what is fetched on the left to what is served on the right: what is there, what is to be made, and
where the time goes by the times that are known."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from msgspec import Struct

from forge.cli.charts import drawn
from forge.cli.fit_report import reason
from forge.cli.text import size
from forge.plan.preview import Outlook, Prospect, State

WIDE, HIGH, GAP, SPACE, EDGE, TOP = 222, 66, 64, 18, 20, 62
STATES: Mapping[State, str] = {
    State.LOCAL: "here",
    State.REMOTE: "in the shared store",
    State.MISS: "to be made",
    State.SPARED: "not needed",
}


class _Place(Struct, frozen=True):
    x: float
    y: float


class _Edge(Struct, frozen=True):
    begin: _Place
    end: _Place
    way: bool
    """It is on the way that takes the longest."""


class _Box(Struct, frozen=True):
    step: Outlook
    place: _Place
    recipe: str
    name: str
    seconds: str
    why: str
    share: float
    """Of the time of the step that takes the longest."""


def picture_of(found: Prospect) -> str:
    """The graph as an SVG."""
    return drawn("plan.svg", **_graph(found.steps))


def page_of(found: Prospect) -> str:
    """The graph with its steps as a table below it."""
    rows = [("Step", "Key", "State", "Size", "Time", "Why")]
    rows += [(o.name, o.key[:12], STATES[o.state], size(o.size), _seconds(o) or "?", reason(o)) for o in found.steps]
    return drawn("plan.html", notes=found.plan.notes, rows=rows, **_graph(found.steps))


def summary(steps: Sequence[Outlook]) -> str:
    """How many steps are to be made, and how long the longest way through them takes by what is known."""
    counts = Counter(step.state for step in steps)
    told = ", ".join(f"{counts[state]} {words}" for state, words in STATES.items() if counts[state])
    way = longest(steps)
    if not way:
        return f"{told}: nothing is left to be made"
    unknown = sum(step.seconds is None for step in way)
    if unknown == len(way):
        return f"{told}; how long that takes nobody knows here yet"
    rest = f", and {unknown} of its {len(way)} steps were never made here" if unknown else ""
    return f"{told}; the longest way through them took {_time(sum(step.seconds or 0.0 for step in way))} when last made{rest}"


def longest(steps: Sequence[Outlook]) -> tuple[Outlook, ...]:
    """Of the steps that are to be made, those that wait for each other and take the longest; one that nobody timed counts
    as a moment."""
    best: dict[str, tuple[float, tuple[Outlook, ...]]] = {}
    for step in steps:
        before = max((best[key] for key in step.needs if key in best), key=_length, default=(0.0, ()))
        own = (step.seconds or 0.001) if step.state is State.MISS else 0.0
        best[step.key] = (before[0] + own, (*before[1], step) if own else before[1])
    return max(best.values(), key=_length, default=(0.0, ()))[1]


def _length(way: tuple[float, tuple[Outlook, ...]]) -> float:
    return way[0]


def _graph(steps: Sequence[Outlook]) -> dict[str, object]:
    """What the template of the graph is filled with."""
    places = _places(steps)
    way = {(one.key, other.key) for one, other in pairwise(longest(steps))}
    most = max((step.seconds or 0.0 for step in steps), default=0.0)
    ends = [(key, step.key) for step in steps for key in _direct(step, steps)]
    return {
        "width": max(max((place.x for place in places.values()), default=0) + WIDE + EDGE, 560),
        "height": max((place.y for place in places.values()), default=0) + HIGH + EDGE,
        "summary": summary(steps),
        "states": STATES,
        "edges": [_Edge(places[one], places[other], (one, other) in way) for one, other in ends],
        "boxes": [_box(step, places[step.key], most) for step in steps],
        "wide": WIDE,
        "high": HIGH,
    }


def _box(step: Outlook, place: _Place, most: float) -> _Box:
    recipe, _, name = step.name.rpartition(": ")
    return _Box(step, place, recipe, name, _seconds(step), reason(step), (step.seconds or 0.0) / most if most else 0.0)


def _direct(step: Outlook, steps: Sequence[Outlook]) -> list[str]:
    """What it needs, less what another of its needs stands on already."""
    needs = {each.key: each.needs for each in steps}

    def below(key: str) -> set[str]:
        return {key} | {one for need in needs.get(key, ()) for one in below(need)}

    further = {one for key in step.needs for need in needs.get(key, ()) for one in below(need)}
    return [key for key in step.needs if key in needs and key not in further]


def _places(steps: Sequence[Outlook]) -> dict[str, _Place]:
    """A column for each step behind all that it needs, in it by where those are."""
    column: dict[str, int] = {}
    for step in steps:
        column[step.key] = 1 + max((column[key] for key in step.needs if key in column), default=-1)
    held: defaultdict[int, list[Outlook]] = defaultdict(list)
    for step in steps:
        held[column[step.key]].append(step)
    tallest = max(map(len, held.values()), default=0)
    places: dict[str, _Place] = {}
    for at in sorted(held):
        ordered = sorted(held[at], key=lambda step: (_middle(step, places), step.name))
        start = TOP + (tallest - len(ordered)) * (HIGH + SPACE) / 2
        for row, step in enumerate(ordered):
            places[step.key] = _Place(EDGE + at * (WIDE + GAP), start + row * (HIGH + SPACE))
    return places


def _middle(step: Outlook, places: Mapping[str, _Place]) -> float:
    heights = [places[key].y for key in step.needs if key in places]
    return sum(heights) / len(heights) if heights else 0.0


def _seconds(step: Outlook) -> str:
    return "" if step.seconds is None else _time(step.seconds)


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
