"""A plan as a graph, from what is fetched on the left to what is served on the right: what is there, what is to be made, and
where the time goes by the times that are known."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from xml.etree.ElementTree import Element

from msgspec import Struct

from forge.cli.charts.svg import cut, document, element, page, picture, table
from forge.cli.fit_report import reason
from forge.cli.text import size
from forge.plan.preview import Outlook, Prospect, State

WIDE, HIGH, GAP, SPACE, EDGE, TOP = 222, 66, 64, 18, 20, 62
LETTERS = 30
STATES: Mapping[State, str] = {
    State.LOCAL: "here",
    State.REMOTE: "in the shared store",
    State.MISS: "to be made",
    State.SPARED: "not needed",
}


class _Place(Struct, frozen=True):
    x: float
    y: float


def picture_of(found: Prospect) -> str:
    """The graph as an SVG."""
    return document(_graph(found))


def page_of(found: Prospect) -> str:
    """The graph with its steps as a table below it."""
    rows = [("Step", "Key", "State", "Size", "Time", "Why")]
    rows += [(o.name, o.key[:12], STATES[o.state], size(o.size), _seconds(o) or "?", reason(o)) for o in found.steps]
    notes = [element("p", f"Note: {note}", class_="soft") for note in found.plan.notes]
    graph = element("div", "", [_graph(found)], class_="wide", tabindex=0, role="region", aria_label="The graph")
    shown = (element("h1", "What a build would do"), graph, *notes)
    return page("forge plan", (*shown, element("section", "", [element("h2", "Step by step"), table(rows)])))


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


def _graph(found: Prospect) -> Element:
    steps = found.steps
    places = _places(steps)
    longest_way = longest(steps)
    way = {(one.key, other.key) for one, other in pairwise(longest_way)}
    most = max((step.seconds or 0.0 for step in steps), default=0.0)
    edges = [_edge(places[key], places[step.key], way=(key, step.key) in way) for step in steps for key in _direct(step, steps)]
    width = max((place.x for place in places.values()), default=0) + WIDE + EDGE
    height = max((place.y for place in places.values()), default=0) + HIGH + EDGE
    head = element("text", cut(summary(steps), int(max(width, 560) / 6.4)), class_="soft", x=EDGE, y=22)
    boxes = [_box(step, places[step.key], most) for step in steps]
    return picture(max(width, 560), height, "What a build would do", "plan", (head, *_legend(34), *edges, *boxes))


def _direct(step: Outlook, steps: Sequence[Outlook]) -> list[str]:
    """What it needs, less what another of its needs stands on already."""
    needs = {each.key: each.needs for each in steps}

    def below(key: str) -> set[str]:
        return {key} | {one for need in needs.get(key, ()) for one in below(need)}

    further = {one for key in step.needs for need in needs.get(key, ()) for one in below(need)}
    return [key for key in step.needs if key in needs and key not in further]


def _legend(top: float) -> list[Element]:
    made: list[Element] = []
    x = float(EDGE)
    for state, words in STATES.items():
        made.append(element("rect", class_=f"box {state}", x=f"{x:g}", y=top, width=16, height=12, rx=3))
        made.append(element("text", words, class_="soft small", x=f"{x + 22:g}", y=top + 10.5))
        x += 44 + len(words) * 6.4
    return made


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


def _edge(begin: _Place, end: _Place, *, way: bool) -> Element:
    x, y, to, high = begin.x + WIDE, begin.y + HIGH / 2, end.x, end.y + HIGH / 2
    bend = (to - x) / 2
    path = f"M {x:g} {y:g} C {x + bend:g} {y:g}, {to - bend:g} {high:g}, {to:g} {high:g}"
    return element("path", class_="edge way" if way else "edge", d=path)


def _box(step: Outlook, place: _Place, most: float) -> Element:
    recipe, _, name = step.name.rpartition(": ")
    told = " \N{MIDDLE DOT} ".join(filter(None, (STATES[step.state], size(step.size) if step.size else "", _seconds(step))))
    inside = [
        element("title", f"{step.name}, {step.key[:12]}: {told}{f' ({why})' if (why := reason(step)) else ''}"),
        element("rect", class_=f"box {step.state}", width=WIDE, height=HIGH, rx=8),
        element("text", cut(recipe, LETTERS + 4), class_="soft small", x=12, y=18),
        element("text", cut(name, LETTERS), class_="bold", x=12, y=36 if recipe else 27),
        element("text", told, class_="soft small", x=12, y=54 if recipe else 48),
    ]
    if step.seconds and most:
        long = max(2.0, (WIDE - 16) * step.seconds / most)
        inside.append(element("rect", class_="time", x=8, y=HIGH - 6, width=f"{long:.1f}", height=3, rx=1.5))
    return element("g", "", inside, transform=f"translate({place.x:g} {place.y:g})")


def _seconds(step: Outlook) -> str:
    return "" if step.seconds is None else _time(step.seconds)


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
