"""Shares out a GPU's memory among the engines of one repository: each gets its kv_cache_free_gpu_mem_fraction for its turn.

Counted from all of a card's memory and not from what is free now: the same recipes on the same machine give the same keys.
"""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from forge.errors import ForgeError
from forge.fit import vllm as of_vllm
from forge.fit.gpus import clash
from forge.fit.memory import Need
from forge.fit.sharing import claims, fractions, missing, room
from forge.fit.verdict import Load, bench
from forge.plan.resolved import Resolved
from forge.recipe.deployment import NO_GPUS, Deployment
from forge.schema.values import Gpu, RuntimeKind

Say = Callable[[str], None]


def seen(gpus: Sequence[Gpu], devices: str) -> tuple[Gpu, ...]:
    """The GPUs that a recipe's ``runtime.gpus`` names, as far as numbers say; all for ids, which nobody here can tell apart."""
    numbers = devices.split(",")
    if not all(number.isdigit() for number in numbers):
        return tuple(gpus)
    return tuple(gpu for at, gpu in enumerate(gpus) if str(at) in numbers)


def limited(gpus: Sequence[Gpu], deployment: Deployment) -> tuple[Gpu, ...]:
    """The GPUs of a deployment, with no more free on them than its budget."""
    chosen = seen(gpus, deployment.gpu.devices or "all")
    return tuple(replace(gpu, free=min(gpu.available, deployment.budget(gpu.memory))) for gpu in chosen)


def shared(
    all_resolved: Sequence[Resolved], deployment: Deployment, gpus: Sequence[Gpu], learn: Callable[[Resolved], Load], say: Say
) -> list[Resolved]:
    """The recipes with the fractions of those that share a GPU. One that its recipe states stays.

    What cannot be computed, for a GPU or a checkpoint that nobody knows, is said and left as the recipes have it.
    """
    found = {id(resolved): resolved for resolved in all_resolved}
    for group in groups(all_resolved, RuntimeKind.VLLM):
        for resolved, part in _vllm_parts(group, deployment, gpus, learn, say):
            recipe = resolved.recipe.having((f"serve.vllm.{of_vllm.UTILIZATION}", part))
            found[id(resolved)] = replace(resolved, recipe=recipe)
    for group in groups(all_resolved):
        if len(group) < 2 and deployment.gpu.memory is None:
            continue
        try:
            for resolved, fraction in _apportioned(group, deployment, gpus, learn, say):
                recipe = resolved.recipe.having(("serve.kv_cache_free_gpu_mem_fraction", fraction))
                found[id(resolved)] = replace(resolved, recipe=recipe, family=resolved.family.about(recipe))
        except ForgeError as error:
            say(f"{_names(group)} share a GPU, and their parts of it stay as the recipes have them: {error.what}")
    return [found[id(resolved)] for resolved in all_resolved]


def groups(all_resolved: Sequence[Resolved], wanted: RuntimeKind | None = None) -> tuple[tuple[Resolved, ...], ...]:
    """The recipes that may meet on a GPU, each group in the order in which a server loads them: the manifest's. Those of
    TensorRT-LLM, or of the runtime that is ``wanted``."""
    apart: list[list[Resolved]] = []
    for resolved in all_resolved:
        kind, devices = resolved.recipe.runtime.kind, resolved.recipe.runtime.gpus
        if devices == NO_GPUS or (kind is not wanted if wanted else not kind.contained):
            continue
        names = frozenset(devices.split(","))
        meets = [group for group in apart if any(clash(names, frozenset(o.recipe.runtime.gpus.split(","))) for o in group)]
        apart = [group for group in apart if group not in meets] + [[resolved, *(other for group in meets for other in group)]]
    return tuple(tuple(sorted(group, key=lambda resolved: resolved.recipe.name)) for group in apart)


def _apportioned(
    group: Sequence[Resolved], deployment: Deployment, gpus: Sequence[Gpu], learn: Callable[[Resolved], Load], say: Say
) -> list[tuple[Resolved, float]]:
    here = [gpu for resolved in group for gpu in seen(gpus, resolved.recipe.runtime.gpus)]
    if not here:
        say(f"{_names(group)} share a GPU, and none is here to count their parts of it for: they stay as the recipes have them")
        return []
    gpu = replace(min(here, key=lambda each: each.memory), free=None)
    budget = deployment.budget(gpu.memory)
    asked = claims([_need(learn(resolved)) for resolved in group])
    free = room(gpu) - (gpu.memory - budget)
    parts = fractions(free, asked, gpu.memory - budget)
    if parts is None:
        short = (sum(claim.fixed + claim.least for claim in asked) - free) / 1e9
        say(f"{_names(group)} do not fit {gpu.name} together: {short:.1f} GB are missing; `forge fit` says what would help")
        return []
    stated = [resolved.recipe.serve.kv_cache_free_gpu_mem_fraction for resolved in group]
    final = [part if own is None else own for part, own in zip(parts, stated, strict=True)]
    for resolved, lack in zip(group, missing(room(gpu), asked, final), strict=True):
        if lack:
            own = ", ".join(f"{o.recipe.name} {f}" for o, f in zip(group, stated, strict=True) if f is not None)
            name = resolved.recipe.name
            say(f"{name} lacks {lack / 1e9:.1f} GB for its cache beside the fractions that recipes state ({own})")
    told = ", ".join(f"{resolved.recipe.name} {fraction}" for resolved, fraction in zip(group, final, strict=True))
    say(f"kv_cache_free_gpu_mem_fraction on {gpu.name}, in the order of loading: {told}")
    return list(zip(group, final, strict=True))


def _vllm_parts(
    group: Sequence[Resolved], deployment: Deployment, gpus: Sequence[Gpu], learn: Callable[[Resolved], Load], say: Say
) -> list[tuple[Resolved, float]]:
    """gpu_memory_utilization of vLLM's models that say none themselves: a part of the whole card, whatever others take."""
    open_ = [each for each in group if not _STATED.intersection(each.recipe.serve.vllm)]
    here = [gpu for each in group for gpu in seen(gpus, each.recipe.runtime.gpus)]
    if not open_ or not here or (len(group) < 2 and deployment.gpu.memory is None):
        return []
    gpu = replace(min(here, key=lambda each: each.memory), free=None)
    try:
        needs = {id(each): _need(learn(each)) for each in group}
    except ForgeError as error:
        say(f"{_names(group)} share a GPU, and their parts of it stay as the recipes have them: {error.what}")
        return []
    taken = sum(of_vllm.taken(each.recipe, needs[id(each)], gpu) for each in group if each not in open_)
    found = of_vllm.parts(gpu, [needs[id(each)] for each in open_], deployment.budget(gpu.memory), taken)
    if found is None:
        say(f"{_names(group)} do not fit {gpu.name} together; `forge fit` says what each of them takes")
        return []
    told = ", ".join(f"{each.recipe.name} {part}" for each, part in zip(open_, found, strict=True))
    say(f"gpu_memory_utilization on {gpu.name}: {told}")
    return list(zip(open_, found, strict=True))


_STATED = frozenset({of_vllm.UTILIZATION, "kv_cache_memory_bytes"})


def _need(load: Load) -> Need:
    return bench(load)(load.recipe)


def _names(group: Sequence[Resolved]) -> str:
    return " and ".join(resolved.recipe.name for resolved in group)
