"""The tables of a benchmark's page: figures, quality, the server's own times, and what was measured, on what, how."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import msgspec
from msgspec import Struct

from forge.bench import words
from forge.bench.figures import names
from forge.bench.results import Point, Results

Numbered = tuple[int, str, Point]
"""A point with its number and its label on the page."""


class Table(Struct, frozen=True):
    """Cells as text. Where ``numbered``, the first is a point's number."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbered: bool = False


def circumstances(results: Results) -> str:
    """When, by what and on what, in one line."""
    machine = results.machine
    parts = [results.made.replace("T", " ")[:16] + " UTC", f"Triton {results.triton}" if results.triton else ""]
    parts += [f"forge {results.forge}" + ("" if results.driver == "forge" else f", load by {results.driver}")]
    parts += [" + ".join(machine.gpus) or machine.cpu]
    return ", ".join(part for part in parts if part)


def chief(points: Sequence[Numbered]) -> Table:
    """One row a point: quality, where it was asked for, beside speed, then the times."""
    shown = sorted(words.chief(tuple(point for _, _, point in points)), key=lambda name: not name.endswith("_per_s"))
    scored = any(point.quality for _, _, point in points)
    header = ("", "setting", *(("quality",) if scored else ()), *(_plain(name) for name in shown))
    return Table("Figures", header, tuple(_row(each, shown, scored=scored) for each in points), numbered=True)


def _row(numbered: Numbered, shown: Sequence[str], *, scored: bool) -> tuple[str, ...]:
    number, label, point = numbered
    quality = point.quality
    mark = (f"{quality.score:.0%} ({quality.low:.0%} to {quality.high:.0%})" if quality else "-",) if scored else ()
    return (str(number), label, *mark, *(words.cell(point.figures.get(name)) for name in shown))


def details(points: Sequence[Numbered]) -> Iterator[Table]:
    """What is looked up: every figure, failures, quality prompt by prompt, Triton's counters, GPUs."""
    shown = [name for name in names() if any(name in point.figures for _, _, point in points)]
    header = ("figure", *(str(number) for number, _, _ in points))
    rows = [(_plain(name), *(words.cell(point.figures.get(name)) for _, _, point in points)) for name in shown]
    yield Table("All figures", header, tuple(rows))
    failed = [
        (str(number), str(count), message) for number, _, point in points for message, count in words.errors(point).items()
    ]
    yield Table("Failed requests", ("", "requests", "message"), tuple(failed), numbered=True)
    asked = [
        (str(number), verdict.name, "passed" if verdict.passed else "; ".join(verdict.failed), verdict.answer)
        for number, _, point in points
        for verdict in (point.quality.verdicts if point.quality else ())
    ]
    yield Table("Quality, prompt by prompt", ("", "prompt", "verdict", "answer"), tuple(asked), numbered=True)
    yield Table("Triton's own times, means for one request", _TRITON, tuple(_triton(points)), numbered=True)
    yield Table("GPUs, mean and highest", _GPUS, tuple(_gpus(points)), numbered=True)


_TRITON = ("", "repeat", "model", "requests", "failures", "queue", "compute input", "compute", "compute output")
_GPUS = ("", "repeat", "GPU", "utilisation", "memory", "power", "temperature")


def _triton(points: Sequence[Numbered]) -> Iterator[tuple[str, ...]]:
    for number, _, point in points:
        for place, repeat in enumerate(point.repeats, 1):
            for name, each in repeat.triton.items():
                times = (each.queue, each.compute_input, each.compute, each.compute_output)
                counts = (str(each.requests), str(each.failures))
                yield (str(number), str(place), name, *counts, *(words.duration(time) for time in times))


def _gpus(points: Sequence[Numbered]) -> Iterator[tuple[str, ...]]:
    for number, _, point in points:
        for place, repeat in enumerate(point.repeats, 1):
            for gpu in repeat.gpus:
                memory = f"{gpu.memory.mean / 1e9:.1f}, {gpu.memory.highest / 1e9:.1f} GB"
                power = f"{gpu.power.mean:.0f}, {gpu.power.highest:.0f} W" if gpu.power else "-"
                heat = f"{gpu.temperature.mean:.0f}, {gpu.temperature.highest:.0f} °C" if gpu.temperature else "-"
                busy = f"{gpu.utilisation.mean:.0%}, {gpu.utilisation.highest:.0%}"
                yield (str(number), str(place), f"{gpu.index} {gpu.name}", busy, memory, power, heat)


def about(results: Results) -> Iterator[Table]:
    """The settings, what was measured, and where. Generic over the format, so that nothing of it can be forgotten."""
    said = {"seconds in all": f"{results.wall:.4g}", "tokens counted by the": words.COUNTED_BY[results.settings.counted]}
    settings = {**_stated(results.settings), **said, "command": shlex.join(results.command)}
    yield _facts("Settings", settings)
    for subject in results.subjects:
        yield _facts(f"What was measured: {subject.name}", _stated(subject))
    versions = {"forge": results.forge, "Triton": results.triton, "load by": results.driver, "began": results.made}
    yield _facts("Where, and by what", {**_stated(results.machine), **versions})


def _facts(title: str, facts: dict[str, str]) -> Table:
    return Table(title, (), tuple((name, value) for name, value in facts.items() if value))


def _stated(value: msgspec.Struct) -> dict[str, str]:
    """Every field that holds something, in words."""
    found = {name: getattr(value, name) for name in value.__struct_fields__ if name != "counted"}
    return {_plain(name): _words(held) for name, held in found.items() if held not in (None, "", (), {})}


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_words(held)}" for name, held in cast("Mapping[object, object]", value).items())
    if isinstance(value, tuple):
        return " | ".join(_words(held) for held in cast("tuple[object, ...]", value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _plain(name: str) -> str:
    """``output_tokens_per_s`` as ``output tokens per s``."""
    return name.replace("_", " ")
