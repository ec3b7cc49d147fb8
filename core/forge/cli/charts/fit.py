"""What fits as bars: each recipe's bytes in the place that it is judged for, one after the other, and what would help."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from forge.cli.charts import drawn
from forge.cli.fit_report import aim, change, figures, place, plain_verdict
from forge.cli.text import size
from forge.fit.report import Fit, Report
from forge.fit.verdict import Verdict

KINDS: Mapping[str, str] = {
    "taken": "taken by others",
    "weights": "weights",
    "draft": "the draft's weights",
    "adapters": "room for adapters",
    "work": "activations, buffers, libraries",
    "cache": "KV cache",
    "missing": "beyond what is there",
}


class Part(Struct, frozen=True):
    """Bytes of one kind, of one recipe."""

    kind: str
    size: int
    of: str = ""


class _Bar(Struct, frozen=True):
    """Parts one after the other in a frame of ``room`` bytes, 0 where there is none; what is beyond its end is marked."""

    title: str
    parts: Sequence[Part]
    room: int


class _Section(Struct, frozen=True):
    head: str
    bar: _Bar
    rows: Sequence[tuple[str, ...]]
    """The first is the header."""
    lines: tuple[str, ...] = ()
    aim: str = ""
    changes: tuple[str, ...] = ()
    basis: str = ""
    """What the figures of a recipe are by."""


def page_of(report: Report) -> str:
    """All of it."""
    sections = [*_together(report), *(_section(each, report) for each in report.fits)]
    return drawn("fit.html", where=_where(report), sections=sections, kinds=KINDS)


def parts(each: Fit, report: Report) -> tuple[Part, ...]:
    """What one recipe takes, alone in its place."""
    judged = each.judgement
    fits = judged is not None and judged.verdict is not Verdict.NO
    found = {
        "taken": 0 if each.in_host_memory or report.gpu is None else report.gpu.memory - report.gpu.available,
        "weights": max(each.weight_ranks, default=0),
        "draft": each.draft,
        "adapters": each.adapters.size,
        "work": each.activation.size,
        "cache": min(each.kv_whole, judged.room) if judged and fits else each.kv_sequence,  # at least one request's
        "missing": judged.absent if judged and not fits else 0,
    }
    return tuple(Part(kind, count) for kind, count in found.items() if count > 0)


def _where(report: Report) -> str:
    if report.gpu is not None:
        return place(report)
    return f"{size(report.host)} of this machine's memory is free" if report.host else "No GPU was named, and none is here"


def _section(each: Fit, report: Report) -> _Section:
    room = report.host if each.in_host_memory else report.gpu.memory if report.gpu is not None else 0
    return _Section(
        f"{each.name} ({each.runtime})",
        _Bar(f"Memory of {each.name}", parts(each, report), room),
        [("", ""), *((label.strip(), figure) for label, figure in figures(each))],
        (plain_verdict(each, report), *(f"Against it: {reason}" for reason in each.objections)),
        f"What alone {aim(each)}, the least intrusive first:",
        tuple(map(change, each.changes)),
        each.basis,
    )


def _together(report: Report) -> list[_Section]:
    """Several engines on one GPU, in the order in which they are loaded."""
    gpu = report.gpu
    if gpu is None or not report.shares:
        return []
    caches = {share.name: share.cache for share in report.shares}
    found = [Part("taken", gpu.memory - gpu.available)]
    for each in report.fits:
        if each.name in caches:
            weights = max(each.weight_ranks, default=0) + each.draft
            sizes = {"weights": weights, "work": each.activation.size, "cache": caches[each.name]}
            found += [Part(kind, count, each.name) for kind, count in sizes.items()]
    rows = [("Model", "kv_cache_free_gpu_mem_fraction", "Cache", "Tokens", "Full-length requests")]
    rows += [(s.name, f"{s.fraction:.6f}", size(s.cache), f"{s.tokens:,}", str(s.sequences)) for s in report.shares]
    bar = _Bar("All of them", [part for part in found if part.size], gpu.memory)
    return [_Section("Together on this GPU, loaded in this order", bar, rows)]
