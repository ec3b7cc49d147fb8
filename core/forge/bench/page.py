"""What goes onto a benchmark's page: the data of each plot, and the tables. Draws nothing.

Every point of the results has a number, from 1 on, which is its name in the plots. Times in plots are milliseconds, but in
the timeline seconds since a repeat's beginning.
"""

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from forge.bench import tables
from forge.bench.results import Figure, Point, Record, Results
from forge.bench.tables import Table

MOST_BARS = 1000
"""Requests of one repeat that the timeline shows: more could not be told apart, and the file is to be mailed."""
DISTRIBUTIONS = {
    "ttft": ("Time to first token", "time to first token, ms"),
    "itl": ("Time between tokens (ITL)", "mean of an answer, ms"),
    "gap": ("Time between chunks", "each gap of each answer, ms"),
    "latency": ("Latency of requests", "from due to the last chunk, ms"),
}
"""``Point.distributions`` -> heading, and what the axis says."""
_MS = 1000.0


class Series(Struct, frozen=True):
    """One point of the results as the plots know it."""

    number: int
    label: str
    """Its setting, and its model where there are several."""
    line: int
    """Those with the same differ in their load only, and are joined."""
    load: float


class Span(Struct, frozen=True):
    """A value and its 95 % interval; without one the ends are the value."""

    value: float
    low: float
    high: float


class Dot(Struct, frozen=True):
    number: int
    x: Span
    y: Span


class Cloud(Struct, frozen=True):
    """One figure against another, a dot for each point that has both."""

    name: str
    title: str
    x_title: str
    y_title: str
    dots: tuple[Dot, ...]
    percent: bool = False
    """Whether y is a share, to be seen against all of 0 to 100 %."""


class Curve(Struct, frozen=True):
    """The 0th, 1st, ... 100th percentile of a point's requests."""

    number: int
    values: tuple[float, ...]


class Distribution(Struct, frozen=True):
    name: str
    title: str
    x_title: str
    curves: tuple[Curve, ...]


class Bar(Struct, frozen=True):
    """One request: ``row`` counts from 0 within its repeat, in the order in which they were due."""

    group: int
    row: int
    due: float
    sent: float
    first: float | None
    end: float
    tokens: int
    fate: str
    """``answered``, ``late`` (a limit of --goodput was not kept) or ``failed``."""
    error: str


class Group(Struct, frozen=True):
    """One repeat of one point; the timeline shows one at a time."""

    series: Series
    repeat: int
    """From 1 on."""
    requests: int
    """How many there were; the bars may be fewer."""


class Timeline(Struct, frozen=True):
    groups: tuple[Group, ...]
    bars: tuple[Bar, ...]


class Page(Struct, frozen=True):
    title: str
    subtitle: str
    series: tuple[Series, ...]
    clouds: tuple[Cloud, ...]
    distributions: tuple[Distribution, ...]
    timeline: Timeline
    chief: Table
    """The figures that matter most."""
    more: tuple[Table, ...]
    notes: tuple[str, ...]


def page(results: Results) -> Page:
    """All that a page shows of ``results``."""
    numbered = tuple(_numbered(results))
    points = [(each.number, point) for each, point in numbered]
    labelled = [(each.number, each.label, point) for each, point in numbered]
    return Page(
        title=", ".join(dict.fromkeys(subject.name for subject in results.subjects)),
        subtitle=tables.circumstances(results),
        series=tuple(each for each, _ in numbered),
        clouds=tuple(cloud for cloud in _clouds(points) if cloud.dots),
        distributions=tuple(_distributions(points)),
        timeline=_timeline(numbered),
        chief=tables.chief(labelled),
        more=tuple(table for table in (*tables.about(results), *tables.details(labelled)) if table.rows),
        notes=results.notes,
    )


def _numbered(results: Results) -> Iterator[tuple[Series, Point]]:
    lines: dict[tuple[object, ...], int] = {}
    for number, point in enumerate(results.points, 1):
        rest = tuple((name, value) for name, value in point.values.items() if name not in ("concurrency", "rate"))
        line = lines.setdefault((point.model, point.rate is None, rest), len(lines))
        label = f"{point.model} {point.label}" if len(results.subjects) > 1 else point.label
        load = float(point.concurrency if point.concurrency is not None else point.rate or 0.0)
        yield Series(number, label, line, load), point


def _clouds(points: Sequence[tuple[int, Point]]) -> Iterator[Cloud]:
    speed = "output_tokens_per_s"
    latency = "latency_p95"
    yield Cloud(
        "throughput",
        "Throughput against latency",
        "latency of requests, 95th percentile, ms",
        "output tokens a second",
        tuple(
            Dot(number, _span(point.figures[latency], _MS), _span(point.figures[speed]))
            for number, point in points
            if latency in point.figures and speed in point.figures
        ),
    )
    yield Cloud(
        "quality",
        "Quality against speed",
        "output tokens a second",
        "prompts that passed, %",
        tuple(
            Dot(number, _span(point.figures[speed]), Span(quality.score * 100, quality.low * 100, quality.high * 100))
            for number, point in points
            if speed in point.figures and (quality := point.quality) is not None
        ),
        percent=True,
    )


def _span(figure: Figure, scale: float = 1.0) -> Span:
    low = figure.value if figure.low is None else figure.low
    high = figure.value if figure.high is None else figure.high
    return Span(figure.value * scale, low * scale, high * scale)


def _distributions(points: Sequence[tuple[int, Point]]) -> Iterator[Distribution]:
    for name, (title, x_title) in DISTRIBUTIONS.items():
        curves = tuple(
            Curve(number, tuple(value * _MS for value in point.distributions[name]))
            for number, point in points
            if point.distributions.get(name)
        )
        if curves:
            yield Distribution(name, title, x_title, curves)


def _timeline(numbered: Iterable[tuple[Series, Point]]) -> Timeline:
    groups: list[Group] = []
    bars: list[Bar] = []
    for series, point in numbered:
        for place, repeat in enumerate(point.repeats, 1):
            ordered = sorted(repeat.records, key=lambda record: (record.due, record.sent))[:MOST_BARS]
            bars += [_bar(len(groups), row, record) for row, record in enumerate(ordered)]
            groups.append(Group(series, place, len(repeat.records)))
    return Timeline(tuple(groups), tuple(bars))


def _bar(group: int, row: int, record: Record) -> Bar:
    return Bar(
        group=group,
        row=row,
        due=record.due,
        sent=record.sent,
        first=record.first,
        end=record.end,
        tokens=record.output_tokens,
        fate="failed" if record.error else "late" if record.good is False else "answered",
        error=record.error,
    )
