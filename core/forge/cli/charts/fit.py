"""What fits as bars: each recipe's bytes in the place that it is judged for, one after the other, and what would help."""

from collections.abc import Iterator, Mapping, Sequence
from xml.etree.ElementTree import Element

from msgspec import Struct

from forge.cli.charts.svg import element, page, picture, table
from forge.cli.fit_report import aim, change, figures, place, plain_verdict
from forge.cli.text import size
from forge.fit.report import Fit, Report
from forge.fit.sharing import Share
from forge.fit.verdict import Verdict

WIDE, HIGH, EDGE = 1100, 34, 2
LETTER = 7.0
"""A letter's width in the bars, nearly."""
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


def page_of(report: Report) -> str:
    """All of it."""
    head = element("h1", "What fits")
    told = element("p", f"{_where(report)}. Bytes of the fullest GPU; what is estimated stands at its middle.", class_="soft")
    together = _together(report)
    return page(
        "forge fit",
        (head, told, *([together] if together is not None else []), *(_section(each, report) for each in report.fits)),
    )


def parts(each: Fit, report: Report) -> tuple[Part, ...]:
    """What one recipe takes, alone in its place."""
    weights = max(each.weight_ranks, default=0)
    judged = each.judgement
    fits = judged is not None and judged.verdict is not Verdict.NO
    cache = min(each.kv_whole, judged.room) if judged and fits else each.kv_sequence  # at least one request's
    absent = judged.absent if judged and not fits else 0
    taken = 0 if each.in_host_memory or report.gpu is None else report.gpu.memory - report.gpu.available
    found = [
        Part("taken", taken),
        Part("weights", weights),
        Part("draft", each.draft),
        Part("adapters", each.adapters.size),
        Part("work", each.activation.size),
        Part("cache", cache),
        Part("missing", absent),
    ]
    return tuple(part for part in found if part.size > 0)


def _where(report: Report) -> str:
    if report.gpu is not None:
        return place(report)
    return f"{size(report.host)} of this machine's memory is free" if report.host else "No GPU was named, and none is here"


def _room(each: Fit, report: Report) -> int:
    """Bytes of the place that it is judged for; 0 where there is none."""
    if each.in_host_memory:
        return report.host
    return report.gpu.memory if report.gpu is not None else 0


def _section(each: Fit, report: Report) -> Element:
    found = parts(each, report)
    rows = [("", "")] + [(label.strip(), figure) for label, figure in figures(each)]
    inside = [
        element("h2", f"{each.name} ({each.runtime})"),
        element("p", plain_verdict(each, report)),
        *(element("p", f"Against it: {reason}") for reason in each.objections),
        _bar(found, _room(each, report), f"Memory of {each.name}"),
        _legend(found),
        *_help(each),
        element("details", "", [element("summary", f"Every figure, by {each.basis}"), table(rows)]),
    ]
    return element("section", "", inside)


def _help(each: Fit) -> Iterator[Element]:
    if each.changes:
        yield element("p", f"What alone {aim(each)}, the least intrusive first:")
        yield element("ul", "", [element("li", change(held)) for held in each.changes])


def _together(report: Report) -> Element | None:
    """Several engines on one GPU, in the order in which they are loaded."""
    gpu = report.gpu
    if gpu is None or not report.shares:
        return None
    caches: Mapping[str, Share] = {share.name: share for share in report.shares}
    found = [Part("taken", gpu.memory - gpu.available)]
    for each in report.fits:
        if share := caches.get(each.name):
            found += [
                Part("weights", max(each.weight_ranks, default=0) + each.draft, each.name),
                Part("work", each.activation.size, each.name),
                Part("cache", share.cache, each.name),
            ]
    held = [part for part in found if part.size]
    rows = [("Model", "kv_cache_free_gpu_mem_fraction", "Cache", "Tokens", "Full-length requests")]
    rows += [(s.name, f"{s.fraction:.6f}", size(s.cache), f"{s.tokens:,}", str(s.sequences)) for s in report.shares]
    inside = [
        element("h2", "Together on this GPU, loaded in this order"),
        _bar(held, gpu.memory, "All of them"),
        _legend(held),
        table(rows),
    ]
    return element("section", "", inside)


def _bar(found: Sequence[Part], room: int, title: str) -> Element:
    """The parts one after the other in a frame as long as the place; what is beyond its end is marked."""
    taken = sum(part.size for part in found)
    scale = (WIDE - 2 * EDGE) / max(taken, room, 1)
    drawn: list[Element] = []
    x = float(EDGE)
    for part in found:
        drawn += _segment(part, x, part.size * scale)
        x += part.size * scale
    if room:
        end = EDGE + room * scale
        drawn.append(_rect("frame", EDGE, end - EDGE))
        drawn.append(element("text", size(room), class_="soft small", x=f"{end:.1f}", y=HIGH + 20, text_anchor="end"))
        if x > end + 1:
            drawn.append(_rect("missing", end, x - end))
        elif x < end - 90:
            drawn.append(_text(f"{size(room - taken)} left", x, "soft"))
    return picture(WIDE, HIGH + 26, title, "fit", drawn)


def _segment(part: Part, x: float, width: float) -> Iterator[Element]:
    label = f"{part.of}: {KINDS[part.kind]}, {size(part.size)}".removeprefix(": ")
    yield _rect(part.kind, x, width, element("title", label))
    words = f"{part.of} {size(part.size)}".strip()
    if width > len(words) * LETTER + 10:
        yield _text(words, x, f"on-{part.kind}")


def _rect(kind: str, x: float, width: float, *inside: Element) -> Element:
    return element("rect", "", inside, class_=kind, x=f"{x:.1f}", y=EDGE, width=f"{width:.1f}", height=HIGH)


def _text(words: str, x: float, kind: str) -> Element:
    return element("text", words, class_=f"small {kind}", x=f"{x + 7:.1f}", y=EDGE + HIGH / 2 + 4)


def _legend(found: Sequence[Part]) -> Element:
    sums: dict[str, int] = {}
    for part in found:
        sums[part.kind] = sums.get(part.kind, 0) + part.size
    swatches: list[Element] = []
    x = 2.0
    for kind, total in sums.items():
        words = f"{KINDS[kind]} {size(total)}"
        swatches.append(element("rect", class_=kind, x=f"{x:.0f}", y=5, width=16, height=11))
        swatches.append(element("text", words, class_="soft small", x=f"{x + 22:.0f}", y=15))
        x += 46 + len(words) * 6.4
    return picture(max(WIDE, x), 22, "What the colours stand for", "fit", swatches)
