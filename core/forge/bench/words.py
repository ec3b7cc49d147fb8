"""How a benchmark's values read, on the screen and on the page."""

from collections import Counter

from forge.bench.compare import Change
from forge.bench.results import Figure, Point

CHIEF = ("ttft_p50", "ttft_p95", "itl_p50", "itl_p95", "latency_p95", "output_tokens_per_s", "requests_per_s")
"""The figures that are shown unless all are asked for."""
_UNLESS_PLAIN = ("goodput_share", "error_share")
COUNTED_BY = {
    "server": "server",
    "asked": "request, which fixes them",
    "tokenizer": "tokenizer",
    "chunks": "number of chunks",
}
"""``Settings.counted`` in words."""


def chief(points: tuple[Point, ...]) -> list[str]:
    """The figures to show of these points: those of CHIEF that any has, goodput where it was judged, errors if any."""
    names = [name for name in CHIEF if any(name in point.figures for point in points)]
    return names + [name for name in _UNLESS_PLAIN if any(_tells(point, name) for point in points)]


def _tells(point: Point, name: str) -> bool:
    return name in point.figures and (name != "error_share" or point.figures[name].value > 0)


def errors(point: Point) -> dict[str, int]:
    """Message -> how many requests of all repeats failed with it."""
    return sum((Counter(repeat.errors) for repeat in point.repeats), Counter[str]())


def cell(figure: Figure | None) -> str:
    """A value with half its interval, as ``184 ms ±20 ms``; a dash for none."""
    if figure is None:
        return "-"
    text = quantity(figure.value, figure.unit)
    if figure.high is None:
        return text
    return f"{text} ±{quantity(figure.high - figure.value, figure.unit)}"


def change(found: Change) -> tuple[str, str, str, str]:
    """Both values, their ratio and its interval, as cells of a table."""
    ratio = found.ratio
    span = f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio and ratio.low is not None and ratio.high is not None else "-"
    first, second = (quantity(value, found.unit) for value in (found.first, found.second))
    return first, second, f"{ratio.value:.3f}" if ratio else "-", span


def quantity(value: float, unit: str) -> str:
    """Three or four digits, times as s or ms, shares as percent."""
    if unit == "s":
        return duration(value)
    return f"{value:.1%}" if unit == "share" else f"{value:.4g}"


def duration(value: float) -> str:
    """Seconds as ``1.2 s`` or ``184 ms``."""
    return f"{value:.3g} s" if abs(value) >= 1 else f"{value * 1000:.3g} ms"
