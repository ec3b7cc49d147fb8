"""How measurements and comparisons read. Imported when there is one to show."""

import sys
from collections.abc import Iterator, Mapping
from typing import cast

import click

from forge.bench import words
from forge.bench.compare import QUALITY, Comparison
from forge.bench.options import BenchOptions, limits, sampled, seconds, swept
from forge.bench.results import Results
from forge.cli.text import table

COLOURS: Mapping[str, str] = {"better": "green", "worse": "red"}


def options_of(options: Mapping[str, object]) -> BenchOptions:
    """The options of ``forge bench run`` as a BenchOptions; BenchError for values that say nothing."""
    told = dict(options)
    duration = cast("str | None", told.pop("duration"))
    patience = seconds(cast("str", told.pop("timeout")), "--timeout")
    return BenchOptions(
        duration=seconds(duration, "--duration") if duration else None,
        patience=patience,
        stream=not told.pop("no_stream"),
        sampling=sampled(cast("tuple[str, ...]", told.pop("stated"))),
        sweep=swept(cast("tuple[str, ...]", told.pop("sweep"))),
        goodput=limits(cast("str", told.pop("goodput"))),
        command=("forge", *sys.argv[1:]),
        **told,  # type: ignore[arg-type]  # click has checked them
    )


def document(found: Results, place: str) -> dict[str, object]:
    """The results without each request; the file at ``place`` has those too."""
    points = [{name: getattr(point, name) for name in ("model", "values", "figures", "quality")} for point in found.points]
    said = ("made", "wall", "driver", "forge", "triton", "subjects", "machine", "settings", "notes")
    return {"results": place, "points": points, **{name: getattr(found, name) for name in said}}


def lines(found: Results) -> Iterator[str]:
    """One table of all points, and what a reader should know."""
    names = words.chief(found.points)
    scored = any(point.quality for point in found.points)
    header = ("MODEL", "SETTING", *(name.upper() for name in names), *(("QUALITY",) if scored else ()))
    rows: list[tuple[str, ...]] = [header]
    for point in found.points:
        cells = tuple(words.cell(point.figures.get(name)) for name in names)
        quality = point.quality
        mark = (f"{quality.score:.0%} [{quality.low:.0%}, {quality.high:.0%}]" if quality else "-",) if scored else ()
        rows.append((point.model, point.label, *cells, *mark))
    yield from _upright(rows)
    yield ""
    yield from _circumstances(found)
    for point in found.points:
        for verdict in point.quality.verdicts if point.quality else ():
            if not verdict.passed:
                yield f"{point.label}: {verdict.name}: {'; '.join(verdict.failed)}"
        for message, count in words.errors(point).items():
            yield click.style(f"{point.model}, {point.label}: {count} failed: {message}", fg="red")
    yield from (f"note: {note}" for note in found.notes)


def _upright(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Points as rows; where there is one only, its figures below each other."""
    if len(rows) == 2:
        yield from table(list(zip(*rows, strict=True))).splitlines()
    else:
        yield from table(rows).splitlines()


def _circumstances(found: Results) -> Iterator[str]:
    settings = found.settings
    amount = f"{settings.duration:g} s" if settings.duration else f"{settings.requests} requests"
    lengths = settings.dataset or f"{_length(settings.input_tokens)} tokens in, {_length(settings.output_tokens)} out"
    yield f"{settings.repeats} repeats of {amount}, {lengths}; means over repeats with 95 % intervals"
    yield f"tokens counted by the {words.COUNTED_BY[settings.counted]}"
    for point in found.points if len(found.points) == 1 else ():
        for name, times in point.repeats[-1].triton.items():
            queue, compute = words.duration(times.queue), words.duration(times.compute)
            yield f"Triton's {name}, last repeat: queue {queue}, compute {compute} a request"


def comparison_lines(found: Comparison, *, everything: bool) -> Iterator[str]:
    """What differs, then a table for each pair of points."""
    for each in found.differences:
        mark = click.style("unlike ", fg="yellow") if each.unlike else ""
        yield f"{mark}{each.what}: {each.first or 'none'} -> {each.second or 'none'}"
    for pair in found.pairs:
        yield ""
        yield click.style(f"{pair.first} -> {pair.second}, {pair.label}", bold=True)
        rows: list[tuple[str, ...]] = [("FIGURE", "FIRST", "SECOND", "RATIO", "95 %", "")]
        for change in pair.changes:
            if everything or change.name in (*words.CHIEF, "goodput_share", "error_share", QUALITY):
                verdict = click.style(change.verdict, fg=COLOURS.get(change.verdict))
                rows.append((change.name, *words.change(change), verdict))
        yield from table(rows).splitlines()


def _length(tokens: int | None) -> str:
    return "various" if tokens is None else str(tokens)
