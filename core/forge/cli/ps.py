"""ps, show."""

from collections.abc import Iterator
from typing import Any

import click

from forge.cli.generate import REPOSITORY
from forge.cli.output import Output, verb
from forge.cli.param_types import SERVED
from forge.cli.text import age, size, table


@click.command()
@verb
def ps(output: Output) -> None:
    """Show what is served: memory, uptime, requests so far.

    HOST is this machine's memory, GPU that of all its GPUs. An engine lives in its server's own process, so its memory is the
    server's. Nothing is asked of any model; `forge status` asks each whether it answers.

    \b
    Example:
        forge ps
    """
    from forge.serve.restart import alone, unwatched

    shop = output.here()
    servers = shop.exhibit.uses()
    left = [each for each in shop.servers() if unwatched(each)]
    rows = [("MODEL", "RUNTIME", "UP", "HOST", "GPU", "REQUESTS", "FAILED", "GRPC")]
    for server in servers:
        for each in server.models:
            memory = (size(each.host) if each.host is not None else "-", size(each.gpu) if each.gpu is not None else "-")
            counts = (str(each.requests), str(each.failed))
            rows.append((each.name, str(each.runtime), age(each.seconds), *memory, *counts, each.address))
        whole = (size(server.host) if server.host is not None else "-", size(server.gpu) if server.gpu is not None else "-")
        rows.append(("(the whole server)", "", age(server.seconds), *whole, "", "", server.address))
    shown = "\n".join([table(rows), *(f"{each.repository}: {alone(each)}" for each in left)])
    document = {"servers": servers, **({"unwatched": [each.repository for each in left]} if left else {})}
    output.result(document, shown if servers else "no server is running")


@click.command()
@click.argument("model", type=SERVED)
@REPOSITORY
@verb
def show(output: Output, model: str, repository: str | None) -> None:
    """Show what stands behind a served MODEL.

    Its recipe, its checkpoint and commit, its runtime and limits, the tensors that it takes and gives, what it holds in memory,
    and the key of everything that it was made from. Of one that is published and not served, what is known without a server.

    \b
    Example:
        forge show smollm2-135m-instruct
    """
    shown = output.here().exhibit.show(model, repository)
    head = click.style(f"{shown.name} ({shown.runtime})", bold=True)
    output.result(shown, "\n".join([head, *(line.replace("\n", "\\n") for line in _lines(shown))]))


def _lines(shown: Any) -> Iterator[str]:
    """``forge.api.shown.Shown`` as a person reads it, below its name."""
    yield f"  recipe      {_recipe(shown.recipe)}"
    yield f"  checkpoint  {shown.source.name or 'not known: the store has forgotten it'}"
    if shown.source.revision:
        yield f"  commit      {shown.source.revision}"
    yield f"  repository  {shown.repository}"
    yield f"  served      {shown.address or 'no'}"
    if use := shown.use:
        memory = f"{size(use.host)} of memory" if use.host is not None else "memory not seen from here"
        memory += f", {size(use.gpu)} of GPU memory" if use.gpu is not None else ""
        yield f"  uses        {memory}; up {age(use.seconds)}, {use.requests} requests, {use.failed} failed"
    yield f"  models      {', '.join(shown.models.values())}"
    yield from _table("built for", shown.built)
    yield from _table("sampling", _stated(shown.sampling))
    yield from _table("limits", _stated(shown.limits))
    if tensors := shown.tensors:
        yield f"  {tensors.model} takes"
        yield from (f"    {each.name:<28}{each.datatype:<8}{list(each.shape)}" for each in tensors.inputs.values())
        yield f"  and gives{'' if not tensors.decoupled else ', as a stream'}"
        yield from (f"    {each.name:<28}{each.datatype:<8}{list(each.shape)}" for each in tensors.outputs.values())
    yield "  made from"
    yield from (f"    {key[:12]}  {step}" for step, key in shown.keys.items())


def _recipe(recipe: Any) -> str:
    if recipe is None:
        return "not noted: an older forge built it"
    state = {"unchanged": "", "changed": ", which has changed since", "gone": ", which is there no more"}[recipe.state]
    return f"{recipe.file}{state} (blake3 {recipe.digest[:12]})"


def _stated(values: Any) -> dict[str, object]:
    """A table of a recipe, without what it leaves open."""
    import msgspec

    return {key: value for key, value in msgspec.structs.asdict(values).items() if value not in (None, ())}


def _table(title: str, values: dict[str, object]) -> Iterator[str]:
    if values:
        yield f"  {title}"
        yield from (f"    {key:<28}{value}" for key, value in values.items())
