"""The step that verifies a candidate before it is published, where the recipe asks for that."""

from dataclasses import replace

from forge.containers import LOCAL
from forge.lowering.sources import hugging_face
from forge.model import RuntimeKind
from forge.order import Order
from forge.steps import Entry, LayBackends, Step, Verify


def with_verdict(order: Order, entry: Entry) -> Entry:
    """The entry, and with ``[verify] on_build`` the verdict that stands on it and on all that serves it."""
    if not order.questions:
        return entry
    wanted = order.recipe.verify
    environment, backends = entry.serving or (None, None)
    triton = backends.action.triton if backends and isinstance(backends.action, LayBackends) else ""
    if order.facts.toolchain.image == LOCAL and not entry.serving:
        triton = LOCAL
    gpus, world = order.gpus, order.recipe.convert.tp * order.recipe.convert.pp
    if order.recipe.runtime.kind is RuntimeKind.LLMAPI:  # built without a GPU
        gpus = order.recipe.runtime.gpus
    action = Verify(
        order.recipe.name,
        entry.names,
        str(order.recipe.runtime.kind),
        order.questions,
        wanted.max_tokens,
        wanted.tie,
        wanted.diverging,
        wanted.streaming,
        order.golden,
        triton=triton,
        gpus="" if entry.serving else gpus,
        world=world,
    )
    needs = [("entry", entry.step), ("model", hugging_face(order))]
    if environment and backends:
        needs += [("environment", environment), ("backends", backends)]
    else:
        needs += [need for need in entry.step.needs if need[0] == "image"]
    return replace(entry, verdict=Step(f"{order.recipe.name}: verdict", action, tuple(needs), promises=("verdict.json",)))
