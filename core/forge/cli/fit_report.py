"""How a report of ``forge fit`` reads; ``forge plan`` shows the same lines. Imported when there is one to show."""

from collections.abc import Iterator, Mapping

import click

from forge.cli.text import size, table
from forge.fit.memory import Estimate
from forge.fit.report import Fit, Report
from forge.fit.suggestions import Change
from forge.fit.verdict import Judgement, Verdict
from forge.plan.preview import How, Outlook
from forge.schema.values import RuntimeKind

COLOURS: Mapping[Verdict, str] = {Verdict.FITS: "green", Verdict.LIMITED: "yellow", Verdict.NO: "red"}


def document(report: Report) -> dict[str, object]:
    """A report as JSON has it."""
    said = ("gpu", "gpus", "host", "fits", "shares", "short", "together")
    return {"fit": report.fit, **{name: getattr(report, name) for name in said}}


def reason(step: Outlook) -> str:
    """Why a step of a plan is to be made, and what a copy of a person's own files costs."""
    why = step.brief or step.why
    if (copy := step.copy) is None:
        return why
    told = f"copies {size(copy.written)} of your files"
    if copy.how is How.HELD:
        told = str(copy.how)
    elif copy.how is How.SHARED:
        told = f"{copy.how} with your files, 0 B are copied"
    elif copy.written < copy.size:
        told += f", {size(copy.size - copy.written)} share blocks"
    return f"{why}; {told}" if why else told


def lines(report: Report) -> Iterator[str]:
    """A report as a person reads it."""
    if report.gpu is not None and not report.gpus and (twins := [each.name for each in report.fits if each.runtime == "twin"]):
        yield f"--gpu counts for nothing to {', '.join(twins)}: a twin runs on the CPU, in this machine's own memory"
        yield ""
    for each in report.fits:
        yield from _fit(each, report)
        yield ""
    if report.together:
        told = f"about {size(report.together)} of {size(report.host)} with one request of full length each"
        yield f"together in this machine's memory: {told}"
    if report.short:
        yield click.style(f"together they do not fit: {size(report.short)} are missing", fg="red")
    elif report.shares:
        yield "together on this GPU, loaded in this order:"
        rows = [("MODEL", "kv_cache_free_gpu_mem_fraction", "CACHE", "TOKENS", "FULL-LENGTH REQUESTS AT A TIME")]
        rows += [
            (each.name, f"{each.fraction:.6f}", size(each.cache), f"{each.tokens:,}", str(each.sequences))
            for each in report.shares
        ]
        yield from table(rows).splitlines()


def verdicts(report: Report) -> Iterator[str]:
    """One line for each recipe."""
    for each in report.fits:
        yield f"{each.name}: {_verdict(each, report)}"
        yield from (f"    {reason}" for reason in each.objections)
        if each.judgement and each.judgement.verdict is Verdict.NO:
            yield from (f"    would fit: {change(held)}" for held in each.changes)


def _fit(each: Fit, report: Report) -> Iterator[str]:
    yield click.style(f"{each.name} ({each.runtime}), by {each.basis}", bold=True)
    rows = list(figures(each))
    width = max(len(label) for label, _ in rows)
    yield from (f"  {label:<{width}}  {figure}" for label, figure in rows)
    yield f"  {_verdict(each, report)}"
    for reason in each.objections:
        yield f"    {reason}"
    if each.changes:
        yield f"  what alone {aim(each)}, the least intrusive first:"
        yield from (f"    {change(held)}" for held in each.changes)


def aim(each: Fit) -> str:
    """What its changes would do."""
    return "would fit" if each.judgement and each.judgement.verdict is Verdict.NO else "would give every slot its full length"


def figures(each: Fit) -> Iterator[tuple[str, str]]:
    """Every figure of one recipe, with what it is."""
    built = each.runtime is RuntimeKind.ENGINE
    yield "parameters", f"{each.parameters:,}"
    for kind, count in sorted(each.weights.items(), key=lambda pair: -pair[1]):
        yield f"  {kind}", size(count)
    yield "weights", size(sum(each.weight_ranks))
    if each.gpus > 1:
        yield "  of each GPU", ", ".join(size(rank) for rank in each.weight_ranks)
    if each.utilization:
        yield "gpu_memory_utilization", f"{each.utilization:g} of the whole card"
    if each.draft:
        yield "  and the draft's", size(each.draft)
    if each.adapters.size:
        yield "  and room for adapters", _span(each.adapters)
    yield "KV cache per token", f"{each.kv_per_token:,} bytes{' on each GPU' if each.gpus > 1 else ''}"
    yield f"  one request of {each.length:,}", size(each.kv_sequence)
    if each.image:
        yield "  of it for an image", each.image
    if each.kv_encoder:
        yield "  of it for the encoder's text", size(each.kv_encoder)
    yield f"  {each.slots} at a time", size(each.kv_whole)
    yield _work(each), _span(each.activation)
    if built:
        yield "to build: GPU", _span(each.build_gpu)
        yield "to build: memory", _span(each.build_host)
        if each.calibration:
            yield "to calibrate: GPUs", f"about {size(each.calibration)}, or slower with a part of it in memory"
    made = (
        "" if not built else f" (checkpoint {size(each.disk.checkpoint)}, converted and engine {size(each.disk.engine)} each)"
    )
    yield "disk", f"{size(each.disk.total)}{made}"
    yield from _of_the_card(each.judgement)


def _of_the_card(judged: Judgement | None) -> Iterator[tuple[str, str]]:
    if judged and judged.left:
        yield "vLLM takes of the card", f"{size(judged.asked)}: weights, work, {size(judged.room)} of cache"
        yield "left free, as NVML tells it", _span(judged.left)


def _work(each: Fit) -> str:
    match each.runtime:
        case RuntimeKind.TWIN:
            return "Triton and one prompt"
        case RuntimeKind.VLLM:
            return "activations, libraries, CUDA graphs" if each.utilization else "Triton and vLLM's processes"
        case _:
            return "activations and buffers"


def _span(about: Estimate) -> str:
    if about.low == about.high:
        return size(about.size)
    return f"about {size(about.size)} ({size(about.low)} to {size(about.high)})"


def plain_verdict(each: Fit, report: Report) -> str:
    """What is said of one recipe, without a terminal's colours."""
    return click.unstyle(_verdict(each, report))


def _verdict(each: Fit, report: Report) -> str:
    judged = each.judgement
    if judged is None:
        if each.in_host_memory:
            return "not judged: this machine does not say how much memory is free"
        known = f"; the smallest card that forge knows and that takes it: {each.smallest}" if each.smallest else ""
        return f'not judged: no GPU is here (name one: --gpu "RTX 4090"){known}'
    where = f"{size(report.host)} of memory" if each.in_host_memory else place(report)
    text = click.style(f"{judged.verdict}", fg=COLOURS[judged.verdict]) + f" in {where}"
    if judged.absent:
        text += f": vLLM starts with all that it asks for, and {size(judged.absent)} of it are not free"
    elif judged.verdict is Verdict.NO:
        text += f": {size(judged.short)} are missing for one request of {each.length:,} tokens" if judged.short else ""
    else:
        full = f"{min(judged.sequences, each.slots)} of {each.slots} slots at full length"
        text += f": {judged.tokens:,} tokens of KV cache"
        text += f" in {size(judged.room)}, {full}" if each.runtime is RuntimeKind.VLLM else f", {full}"
    return text if judged.certain else f"{text} (a close call: the estimates' span decides otherwise)"


def place(report: Report) -> str:
    """The card, with what is free of it."""
    gpu = report.gpu
    if gpu is None:
        return "no GPU"
    return (
        f"{gpu.name}, {size(gpu.available)} free of {size(gpu.memory)}"
        if gpu.free is not None
        else f"{gpu.name}, {size(gpu.memory)}"
    )


def change(held: Change) -> str:
    """What to set, why it helps, and what then holds."""
    pairs = ", ".join(f"{key} = {value}" for key, value in held.set)
    holds = f"weights {size(held.weights)}, {held.tokens:,} tokens of cache"
    return f"{pairs}: {held.why} ({holds}; {held.verdict})"
