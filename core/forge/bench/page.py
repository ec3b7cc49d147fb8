"""Draws a benchmark's page with Bokeh: one HTML file that holds Bokeh's own JavaScript and asks for nothing.

Every point of the results has a number, from 1 on, which is its name in the plots. Times in plots are milliseconds, but in
the timeline seconds since a repeat's beginning.

Text of the results reaches the file by two ways only: the template, which escapes it, and the columns of Bokeh's data sources,
which Bokeh writes as escaped JSON. No title or axis label is of Bokeh: it would look for TeX in them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from bokeh.core.enums import DashPatternType
from bokeh.embed import components
from bokeh.models import CDSView, ColumnDataSource, DataRange1d, GroupFilter, HoverTool, Model, Range1d
from bokeh.models.annotations import LabelSet, Whisker
from bokeh.models.renderers import DataRenderer
from bokeh.palettes import Category10_10
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from msgspec import Struct

from forge.bench import tables
from forge.bench.results import Figure, Point, Record, Repeat, Results
from forge.files import texts

MOST_BARS = 1000
"""Requests of one repeat that the timeline shows: more could not be told apart, and the file is to be mailed."""
DISTRIBUTIONS = {
    "ttft": ("Time to first token", "time to first token, ms"),
    "itl": ("Time between tokens (ITL)", "mean of an answer, ms"),
    "gap": ("Time between chunks", "each gap of each answer, ms"),
    "latency": ("Latency of requests", "from due to the last chunk, ms"),
}
"""``Point.distributions`` -> heading, and what the axis says."""
_DASHES: tuple[DashPatternType, ...] = ("solid", "dashed", "dotted", "dotdash")
"""From the eleventh point on colours come again, with another dash."""
_TOOLS = "pan,box_zoom,wheel_zoom,reset,save"
_ROOM = 0.15
"""Part of a plot's span that is left free around its dots."""
_MS, _PERCENT = 1000.0, 100.0


class Series(Struct, frozen=True):
    """One point of the results as the plots know it."""

    number: int
    label: str
    """Its setting, and its model where there are several."""
    line: int
    """Those with the same differ in their load only, and are joined."""
    load: float
    point: Point


class Plot(Struct, frozen=True):
    """A plot, and what stands above and below it: Bokeh 3.9 paints axis labels twice."""

    title: str
    y_title: str
    x_title: str
    drawn: figure


Dot = tuple[Series, Figure, Figure]
"""A point with its x and its y."""


def html(results: Results) -> str:
    """The whole file."""
    series = numbered(results)
    shown = [(each.number, each.label, each.point) for each in series]
    repeats = [(each, place, repeat) for each in series for place, repeat in enumerate(each.point.repeats, 1)]
    drawn = {str(plot.drawn.name): plot for plot in plots(series)}
    models: dict[str, Model] = {name: plot.drawn for name, plot in drawn.items()}
    if repeats:
        models["timeline"] = timeline([repeat for _, _, repeat in repeats])
    script, parts = components(models)
    surroundings = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return surroundings.from_string(texts.part("forge.bench", "bench_page.html")).render(
        title=", ".join(dict.fromkeys(subject.name for subject in results.subjects)),
        subtitle=tables.circumstances(results),
        notes=results.notes,
        series=series,
        repeats=repeats,
        most_bars=MOST_BARS,
        chief=tables.chief(shown),
        more=[table for table in (*tables.about(results), *tables.details(shown)) if table.rows],
        colours={str(each.number): _colour(each.number) for each in series},
        plots=drawn,
        parts={name: Markup(part) for name, part in parts.items()},  # noqa: S704 - Bokeh's own, escaped by it
        script=Markup(script),  # noqa: S704
        library=Markup(_library()),  # noqa: S704
    )


def numbered(results: Results) -> tuple[Series, ...]:
    """The points as the plots know them."""
    lines: dict[tuple[object, ...], int] = {}
    found: list[Series] = []
    for number, point in enumerate(results.points, 1):
        rest = tuple((name, value) for name, value in point.values.items() if name not in ("concurrency", "rate"))
        line = lines.setdefault((point.model, point.rate is None, rest), len(lines))
        label = f"{point.model} {point.label}" if len(results.subjects) > 1 else point.label
        load = float(point.concurrency if point.concurrency is not None else point.rate or 0.0)
        found.append(Series(number, label, line, load, point))
    return tuple(found)


def plots(series: Sequence[Series]) -> Iterator[Plot]:
    """All but the timeline; those for which nothing was measured are left out."""
    speed, latency = "output_tokens_per_s", "latency_p95"
    told = [(each, each.point.figures) for each in series]
    if dots := [(each, held[latency], held[speed]) for each, held in told if latency in held and speed in held]:
        ways = ("output tokens a second", "latency of requests, 95th percentile, ms")
        yield Plot("Throughput against latency", *ways, _cloud("throughput", dots, *ways, (_MS, 1.0)))
    if dots := [(each, held[speed], score) for each, held in told if speed in held and (score := _score(each.point))]:
        ways = ("prompts that passed, %", "output tokens a second")
        drawn = _cloud("quality", dots, *ways, (1.0, _PERCENT))
        drawn.y_range = Range1d(start=-4, end=106)  # a share is seen against all of it
        yield Plot("Quality against speed", *ways, drawn)
    for name, (title, x_title) in DISTRIBUTIONS.items():
        if known := [each for each in series if each.point.distributions.get(name)]:
            yield Plot(title, "% of them that take no longer", x_title, _distribution(name, known))


def _score(point: Point) -> Figure | None:
    held = point.quality
    return Figure(value=held.score, low=held.low, high=held.high, unit="share") if held else None


def _library() -> str:
    """Bokeh's JavaScript, without what would say on the console at which level it logs."""
    return "\n".join(
        each for each in Resources(mode="inline", components=["bokeh"]).js_raw if "set_log_level(" not in each[:40]
    )


def _colour(number: int) -> str:
    return Category10_10[(number - 1) % len(Category10_10)]


def _plot(name: str, height: int) -> figure:
    """An empty plot. No tool is active from the start: a finger that scrolls the page is to go past the plots."""
    made = figure(
        name=name,
        height=height,
        sizing_mode="stretch_width",
        tools=_TOOLS,
        active_drag=None,
        active_scroll=None,
        toolbar_location="right",
        outline_line_alpha=0,
    )
    made.toolbar.logo = None
    made.toolbar.autohide = True
    made.grid.grid_line_alpha = 0.6
    made.axis.minor_tick_line_alpha = 0
    return made


def _cloud(name: str, dots: Sequence[Dot], y_title: str, x_title: str, scales: tuple[float, float]) -> figure:
    """One figure against another, a dot for each point."""
    made = _plot(name, 320)
    xs = _ends("x", [x for _, x, _ in dots], scales[0])
    ys = _ends("y", [y for _, _, y in dots], scales[1])
    made.x_range, made.y_range = _around(xs["x"]), _around(ys["y"])
    for line in dict.fromkeys(each.line for each, _, _ in dots):
        held = zip(dots, xs["x"], ys["y"], strict=True)
        joined = sorted((each.load, x, y) for (each, _, _), x, y in held if each.line == line)
        made.line([x for _, x, _ in joined], [y for _, _, y in joined], line_color="#8a929c", line_alpha=0.6, line_width=1.5)
    columns: dict[str, Sequence[object]] = {
        "number": [str(each.number) for each, _, _ in dots],
        "label": [each.label for each, _, _ in dots],
        "colour": [_colour(each.number) for each, _, _ in dots],
        **xs,
        **ys,
    }
    source = ColumnDataSource(data=columns, name=f"{name}-data")
    upright = Whisker(source=source, base="x", lower="y_low", upper="y_high", dimension="height")
    level = Whisker(source=source, base="y", lower="x_low", upper="x_high", dimension="width")
    for whisker in (upright, level):
        whisker.line_color, whisker.line_alpha, whisker.level = "colour", 0.5, "underlay"
        whisker.upper_head = whisker.lower_head = None
        made.add_layout(whisker)
    marks = made.scatter("x", "y", source=source, size=11, fill_color="colour", line_color="colour")
    made.add_layout(
        LabelSet(x="x", y="y", text="number", source=source, x_offset=8, y_offset=5, text_font_size="12px", text_color="colour")
    )
    ranges = "{1}: @{0}{{0.0}}<br>(95 %: @{0}_low{{0.0}} to @{0}_high{{0.0}})"
    tip = _tip("@number: @label", ranges.format("x", x_title), ranges.format("y", y_title))
    made.add_tools(HoverTool(renderers=[marks], tooltips=tip))
    return made


def _tip(*lines: str) -> str:
    """What is shown of a mark, no wider than a phone. Bokeh puts a column's text in as text, never as markup."""
    return (
        f'<div style="max-width: 230px; white-space: normal; overflow-wrap: anywhere; color: #222">{"<br>".join(lines)}</div>'
    )


def _ends(axis: str, held: Sequence[Figure], scale: float) -> Mapping[str, Sequence[float]]:
    """Values with their 95 % intervals; without one the ends are the value."""
    return {
        axis: [each.value * scale for each in held],
        f"{axis}_low": [(each.value if each.low is None else each.low) * scale for each in held],
        f"{axis}_high": [(each.value if each.high is None else each.high) * scale for each in held],
    }


def _around(values: Sequence[float]) -> Range1d:
    """A range for the values: the interval of few repeats may be so wide that nothing else would be seen."""
    low, high = min(values), max(values)
    room = _ROOM * ((high - low) or abs(high) or 1.0)
    return Range1d(start=max(low - room, min(0.0, low) - room / 3), end=high + room)


def _distribution(name: str, series: Sequence[Series]) -> figure:
    """The 0th, 1st, ... 100th percentile of each point's requests."""
    made = _plot(name, 280)
    lines: list[DataRenderer] = []
    for each in series:
        values = [value * _MS for value in each.point.distributions[name]]
        share = [100 * place / (len(values) - 1) for place in range(len(values))]
        columns = {"x": values, "share": share, "label": [f"{each.number}: {each.label}"] * len(share)}
        source = ColumnDataSource(data=columns, name=f"{name}-{each.number}")
        dash = _DASHES[(each.number - 1) // len(Category10_10) % len(_DASHES)]
        lines.append(made.line("x", "share", source=source, line_width=2, line_color=_colour(each.number), line_dash=dash))
    made.y_range = Range1d(start=0, end=102)
    tip = _tip("@label", "@share{0} % take no longer than @x{0.00} ms")
    made.add_tools(HoverTool(renderers=lines, tooltips=tip, line_policy="nearest"))
    return made


def timeline(repeats: Sequence[Repeat]) -> figure:
    """All repeats in one source, of which a filter shows one; the page's own script turns it."""
    made = _plot("timeline", 360)
    made.y_range = DataRange1d(flipped=True)
    rows: list[Sequence[object]] = []
    for group, repeat in enumerate(repeats):
        ordered = sorted(repeat.records, key=lambda record: (record.due, record.sent))[:MOST_BARS]
        rows += [(str(group), row, *_cells(record)) for row, record in enumerate(ordered, 1)]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(_COLUMNS)}
    source = ColumnDataSource(data=columns, name="timeline-data")
    shown = GroupFilter(column_name="group", group="0", name="timeline-filter")
    view = CDSView(filter=shown)
    drawn = [
        made.hbar(y="row", left=left, right=right, height=0.8, source=source, view=view, fill_color=colour, line_color=None)
        for left, right, colour in _SEGMENTS
    ]
    late = made.scatter("late", "row", source=source, view=view, marker="diamond", size=14, color="#b264d0")
    times = ("due @due{0.000} s, sent @sent{0.000} s", "first token @first{0.000} s, end @end{0.000} s")
    tip = _tip("request @row: @tokens tokens, @fate", *times, "@error")
    made.add_tools(HoverTool(renderers=[*drawn, late], tooltips=tip))
    return made


_COLUMNS = ("group", "row", "due", "sent", "first", "end", "failed", "late", "tokens", "fate", "error")
_SEGMENTS = (
    ("due", "sent", "#8f98a3"),
    ("sent", "first", "#e79a3a"),
    ("first", "end", "#4492da"),
    ("failed", "end", "#e2494b"),
)
"""From which column to which, and its colour, which is a mean of those that the page's key has for light and dark."""


def _cells(request: Record) -> tuple[object, ...]:
    """From ``due`` on, in the order of _COLUMNS; what does not apply is no number, which Bokeh leaves out."""
    failed, late = bool(request.error), not request.error and request.good is False
    first = math.nan if failed else request.end if request.first is None else request.first
    ends = (request.sent if failed else math.nan, request.end if late else math.nan)
    fate = "failed" if failed else "beyond a limit" if late else "answered"
    return request.due, request.sent, first, request.end, *ends, request.output_tokens, fate, request.error
