"""Draws a benchmark's page with Bokeh: one HTML file that holds Bokeh's own JavaScript and asks for nothing.

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

from forge.bench.page import MOST_BARS, Bar, Cloud, Distribution, Page, Span, Timeline
from forge.files import texts

_DASHES: tuple[DashPatternType, ...] = ("solid", "dashed", "dotted", "dotdash")
"""From the eleventh point on colours come again, with another dash."""
_TOOLS = "pan,box_zoom,wheel_zoom,reset,save"
_ROOM = 0.15
"""Part of a plot's span that is left free around its dots."""


def html(page: Page) -> str:
    """The whole file."""
    plots: dict[str, Model] = {cloud.name: _cloud(page, cloud) for cloud in page.clouds}
    plots |= {each.name: _distribution(page, each) for each in page.distributions}
    if page.timeline.groups:
        plots["timeline"] = _timeline(page.timeline)
    script, parts = components(plots)
    template = texts.part("forge.bench", "bench_page.html")
    surroundings = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return surroundings.from_string(template).render(
        page=page,
        most_bars=MOST_BARS,
        colours={str(each.number): _colour(each.number) for each in page.series},
        plots={name: Markup(part) for name, part in parts.items()},  # noqa: S704 - Bokeh's own, escaped by it
        script=Markup(script),  # noqa: S704
        library=Markup(_library()),  # noqa: S704
    )


def _library() -> str:
    """Bokeh's JavaScript, without what would say on the console at which level it logs."""
    return "\n".join(
        each for each in Resources(mode="inline", components=["bokeh"]).js_raw if "set_log_level(" not in each[:40]
    )


def _colour(number: int) -> str:
    return Category10_10[(number - 1) % len(Category10_10)]


def _plot(name: str, height: int) -> figure:
    """An empty plot; what its axes show stands above and below it, for Bokeh 3.9 paints axis labels twice. No tool is active
    from the start: a finger that scrolls the page is to go past the plots."""
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


def _cloud(page: Page, cloud: Cloud) -> figure:
    made = _plot(cloud.name, 320)
    series = {each.number: each for each in page.series}
    made.x_range = _around([dot.x for dot in cloud.dots])
    made.y_range = Range1d(start=-4, end=106) if cloud.percent else _around([dot.y for dot in cloud.dots])
    for line in dict.fromkeys(series[dot.number].line for dot in cloud.dots):
        joined = sorted(
            (series[dot.number].load, dot.x.value, dot.y.value) for dot in cloud.dots if series[dot.number].line == line
        )
        made.line([x for _, x, _ in joined], [y for _, _, y in joined], line_color="#8a929c", line_alpha=0.6, line_width=1.5)
    columns: dict[str, Sequence[object]] = {
        "number": [str(dot.number) for dot in cloud.dots],
        "label": [series[dot.number].label for dot in cloud.dots],
        "colour": [_colour(dot.number) for dot in cloud.dots],
        **_ends("x", [dot.x for dot in cloud.dots]),
        **_ends("y", [dot.y for dot in cloud.dots]),
    }
    source = ColumnDataSource(data=columns, name=f"{cloud.name}-data")
    upright = Whisker(source=source, base="x", lower="y_low", upper="y_high", dimension="height")
    level = Whisker(source=source, base="y", lower="x_low", upper="x_high", dimension="width")
    for whisker in (upright, level):
        whisker.line_color, whisker.line_alpha, whisker.level = "colour", 0.5, "underlay"
        whisker.upper_head = whisker.lower_head = None
        made.add_layout(whisker)
    dots = made.scatter("x", "y", source=source, size=11, fill_color="colour", line_color="colour")
    made.add_layout(
        LabelSet(x="x", y="y", text="number", source=source, x_offset=8, y_offset=5, text_font_size="12px", text_color="colour")
    )
    ranges = "{1}: @{0}{{0.0}}<br>(95 %: @{0}_low{{0.0}} to @{0}_high{{0.0}})"
    tip = _tip("@number: @label", ranges.format("x", cloud.x_title), ranges.format("y", cloud.y_title))
    made.add_tools(HoverTool(renderers=[dots], tooltips=tip))
    return made


def _tip(*lines: str) -> str:
    """What is shown of a mark, no wider than a phone. Bokeh puts a column's text in as text, never as markup."""
    return (
        f'<div style="max-width: 230px; white-space: normal; overflow-wrap: anywhere; color: #222">{"<br>".join(lines)}</div>'
    )


def _ends(axis: str, spans: Sequence[Span]) -> Mapping[str, Sequence[float]]:
    return {
        axis: [span.value for span in spans],
        f"{axis}_low": [span.low for span in spans],
        f"{axis}_high": [span.high for span in spans],
    }


def _around(spans: Sequence[Span]) -> Range1d:
    """A range for the values: the interval of few repeats may be so wide that nothing else would be seen."""
    low, high = min(span.value for span in spans), max(span.value for span in spans)
    room = _ROOM * ((high - low) or abs(high) or 1.0)
    return Range1d(start=max(low - room, min(0.0, low) - room / 3), end=high + room)


def _distribution(page: Page, each: Distribution) -> figure:
    made = _plot(each.name, 280)
    labels = {one.number: one.label for one in page.series}
    lines: list[DataRenderer] = []
    for curve in each.curves:
        share = [100 * place / (len(curve.values) - 1) for place in range(len(curve.values))]
        label = f"{curve.number}: {labels[curve.number]}"
        columns = {"x": list(curve.values), "share": share, "label": [label] * len(share)}
        source = ColumnDataSource(data=columns, name=f"{each.name}-{curve.number}")
        dash = _DASHES[(curve.number - 1) // len(Category10_10) % len(_DASHES)]
        lines.append(made.line("x", "share", source=source, line_width=2, line_color=_colour(curve.number), line_dash=dash))
    made.y_range = Range1d(start=0, end=102)
    tip = _tip("@label", "@share{0} % take no longer than @x{0.00} ms")
    made.add_tools(HoverTool(renderers=lines, tooltips=tip, line_policy="nearest"))
    return made


def _timeline(timeline: Timeline) -> figure:
    """All repeats in one source, of which a filter shows one; the page's own script turns it."""
    made = _plot("timeline", 360)
    made.y_range = DataRange1d(flipped=True)
    columns: dict[str, list[object]] = {name: [] for name in _COLUMNS}
    for bar in timeline.bars:
        for name, value in zip(_COLUMNS, _cells(bar), strict=True):
            columns[name].append(value)
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


def _cells(bar: Bar) -> Iterator[object]:
    """In the order of _COLUMNS; what does not apply is no number, which Bokeh leaves out."""
    failed = bar.fate == "failed"
    first = math.nan if failed else bar.end if bar.first is None else bar.first
    yield from (str(bar.group), bar.row + 1, bar.due, bar.sent, first, bar.end)
    yield from (bar.sent if failed else math.nan, bar.end if bar.fate == "late" else math.nan)
    yield from (bar.tokens, {"late": "beyond a limit"}.get(bar.fate, bar.fate), bar.error)
