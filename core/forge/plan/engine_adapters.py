"""LoRA adapters of an engine: what it is built with for them, and the arrays that TensorRT-LLM takes them as. Pure.

An engine stands on which modules adapters change and on their largest rank, and not on their weights: another adapter of the
same kind builds nothing anew.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from msgspec.structs import replace

from forge.errors import Problem
from forge.fit import model_shape
from forge.fit.model_shape import Shape, UnknownShapeError
from forge.plan import adapters
from forge.plan.resolved import Resolved
from forge.plan.steps import LayAdapter, Link, Step
from forge.repository import config
from forge.schema.adapters import ARRAYS, FOLDER, Adapter, Pair
from forge.schema.values import Command, ConfigOverrides, Role, Scalar
from forge.trtllm import lora

BUILDER = "trtllm-build"
INPUTS = ("lora_task_id", "lora_weights", "lora_config")
"""Inputs of NVIDIA's models for an adapter."""
GPU_FRACTION = 0.5
"""Of the memory that engine and KV cache leave, what the adapters' cache gets; TensorRT-LLM's own 0.05 seldom holds one."""
HOST_BYTES = 1 << 30
"""TensorRT-LLM's own host cache."""
PREFETCH = "lora_prefetch_dir"
_FLAGS = ("lora_plugin", "lora_target_modules", "max_lora_rank", "lora_dir", "lora_ckpt_source")
_LAYER = re.compile(r".*\blayers\.\d+\.(?:.+\.)?(?P<leaf>\w+)")
_HALF = 'set convert.dtype = "float16"'


def check(resolved: Resolved) -> Iterator[Problem]:
    """What keeps the recipe's adapters out of its engine."""
    if not resolved.recipe.lora:
        return
    yield from (*_unable(resolved), *adapters.check(resolved), *_image(resolved))
    shape = _shape(resolved)
    for adapter in resolved.adapters:
        if wrong := next(_misfit(resolved, adapter, shape), None):
            yield Problem(f"lora.{adapter.name}", *wrong)


def flagged(resolved: Resolved, commands: Sequence[Command]) -> tuple[Command, ...]:
    """The commands, with what builds an engine that takes the recipe's adapters."""
    if not resolved.adapters:
        return tuple(commands)
    words = ("--lora_plugin", "auto", "--lora_target_modules", *targets(resolved), "--max_lora_rank", str(rank(resolved)))
    return tuple(
        replace(command, argv=(*command.argv, *words)) if command.argv[:1] == (BUILDER,) else command for command in commands
    )


def targets(resolved: Resolved) -> tuple[str, ...]:
    """TensorRT-LLM's modules that the recipe's adapters change, with those that are enabled together with them. All that the
    family names where an adapter's source does not show its matrices."""
    known = resolved.family.lora_modules()
    leaves = {pair.leaf for adapter in resolved.adapters for pair in adapter.pairs()}
    if any(not adapter.tensors for adapter in resolved.adapters):
        leaves.update(known)
    return lora.enabled({known[leaf] for leaf in leaves if known.get(leaf) in lora.MODULES})


def rank(resolved: Resolved) -> int:
    """The largest rank of all adapters."""
    return max((adapter.rank for adapter in resolved.adapters), default=0)


def page(resolved: Resolved, shape: Shape | None = None) -> int:
    """Bytes that each adapter takes of a cache; 0 where nobody knows the checkpoint's sizes."""
    known = shape or _shape(resolved)
    return lora.page(targets(resolved), known, rank(resolved)) if known and resolved.adapters else 0


def room(resolved: Resolved, shape: Shape) -> int:
    """Bytes that all adapters take of a GPU."""
    return len(resolved.adapters) * page(resolved, shape)


def notes(resolved: Resolved) -> Iterator[str]:
    """What is worth knowing of the recipe's adapters beforehand."""
    yield from adapters.notes(resolved, "the build looks at them")
    if resolved.adapters and _dtype(resolved) == "":
        yield f"its adapters are laid as {lora.DTYPE}: the engine has to be of that type ({_HALF})"


def steps(resolved: Resolved) -> tuple[tuple[str, Step], ...]:
    """Each adapter as arrays, under the name that an entry has for it."""
    modules = {leaf: lora.MODULES[name] for leaf, name in resolved.family.lora_modules().items() if name in lora.MODULES}
    return tuple(
        (need, Step(f"{fetched.name} for TensorRT-LLM", LayAdapter(modules), (("adapter", fetched),), promises=ARRAYS))
        for need, fetched in adapters.steps(resolved)
    )


def links(resolved: Resolved, assets: str) -> tuple[Link, ...]:
    """Their arrays under ``assets``, each adapter in a folder called as its task id: a server reads them so by itself."""
    return tuple(
        Link(adapters.need(adapter), array, f"{assets}/{FOLDER}/{task}/{array}")
        for task, adapter in enumerate(resolved.adapters, 1)
        for array in ARRAYS
    )


def settings(resolved: Resolved, assets: str) -> ConfigOverrides:
    """The adapters' caches, and where a server finds them at its start; what its config has no parameter for is left out."""
    if not resolved.adapters:
        return ConfigOverrides()
    most = rank(resolved)
    wanted: dict[str, Scalar] = {
        "lora_cache_optimal_adapter_size": most,
        "lora_cache_max_adapter_size": most,
        "lora_cache_gpu_memory_fraction": GPU_FRACTION,
        "lora_cache_host_memory_bytes": max(HOST_BYTES, page(resolved) * (len(resolved.adapters) + 1)),
        PREFETCH: f"{config.ROOT}/{assets}/{FOLDER}",
    }
    if resolved.tooling is not None:
        known = config.placeholders(_skeleton(resolved, Role.TENSORRT_LLM))
        wanted = {key: value for key, value in wanted.items() if key in known}
    return ConfigOverrides({Role.TENSORRT_LLM: wanted})


# -- the checks


def _unable(resolved: Resolved) -> Iterator[Problem]:
    recipe, modules = resolved.recipe, resolved.family.lora_modules()
    if recipe.variant is not None:
        what = f"forge has no adapters for an engine of the variant {recipe.variant}"
        yield Problem("lora", what, "take the variant away, or the adapters")
        return
    if not modules:
        what = f"family {resolved.family.name} names no modules that an adapter may change (forge_lora_modules)"
        yield Problem("lora", what, 'take them away, or say runtime.kind = "vllm"')
    if strange := next((name for name in modules.values() if name not in lora.MODULES), ""):
        what = f"family {resolved.family.name} names {strange}, which is no module of TensorRT-LLM's"
        yield Problem("lora", what, f"it has {', '.join(lora.MODULES)}")
    for flag in recipe.build.args:
        if flag.replace("-", "_") in _FLAGS:
            yield Problem(f"build.args.{flag}", "forge sets this flag itself, for [[lora]]", "take it away")
    if (found := _dtype(resolved)) not in ("", lora.DTYPE):
        what = f"the engine would be of {found}, and NVIDIA's models take adapters for one of {lora.DTYPE} alone"
        yield Problem("convert.dtype", what, _HALF)


def _dtype(resolved: Resolved) -> str:
    """The engine's type, where that is known: its scripts take ``auto`` from config.json, and float32 for float16."""
    stated = resolved.recipe.convert.dtype
    if stated != "auto":
        return stated
    held = resolved.facts.checkpoint.config
    found = held.get("torch_dtype") or held.get("dtype")
    return "bfloat16" if found == "bfloat16" else lora.DTYPE if found in ("float16", "float32") else ""


def _image(resolved: Resolved) -> Iterator[Problem]:
    """Whether NVIDIA's models of the image have inputs for adapters, of the type that forge lays."""
    if resolved.tooling is None:
        return
    for role in (Role.TENSORRT_LLM, Role.BLS):
        text = _skeleton(resolved, role)
        if not text:
            continue
        if absent := [name for name in INPUTS if f'"{name}"' not in text]:
            what = f"{role} of {resolved.facts.toolchain.image} has no input {absent[0]}: its engines take no adapters"
            yield Problem("runtime.image", what, "take another image of NVIDIA's (docs/images.md)")


def _skeleton(resolved: Resolved, role: Role) -> str:
    held = resolved.tooling.skeletons if resolved.tooling else ()
    return next((each.content for each in held if each.path == f"{role}/{config.CONFIG}"), "")


def _misfit(resolved: Resolved, adapter: Adapter, shape: Shape | None) -> Iterator[tuple[str, str]]:
    """What of one adapter the engine could not add."""
    yield from adapters.beyond(adapter, "engines")
    known = resolved.family.lora_modules()
    sizes: Mapping[str, tuple[int, int]] = lora.sizes(shape) if shape else {}
    for pair in adapter.pairs():
        leaf = pair.leaf
        if leaf not in known or not _LAYER.fullmatch(pair.module):
            takes = ", ".join(known) or "none"
            yield (
                f"it changes {pair.module}; adapters of family {resolved.family.name} may change {takes}, in layers",
                adapters.MERGE,
            )
            return
        outer, wanted = _outer(pair), sizes.get(known[leaf])
        if outer and wanted and outer != wanted:
            what = f"it changes {pair.module}, of {outer[0]} inputs and {outer[1]} outputs"
            yield f"{what}, and TensorRT-LLM takes its {known[leaf]} to have {wanted[0]} and {wanted[1]}", adapters.MERGE
            return


def _outer(pair: Pair) -> tuple[int, int] | None:
    """Inputs and outputs of the module, where both matrices are there."""
    whole = pair.a is not None and pair.b is not None and len(pair.a) == len(pair.b) == 2
    return (pair.a[1], pair.b[0]) if whole and pair.a and pair.b else None


def _shape(resolved: Resolved) -> Shape | None:
    try:
        return model_shape.read(resolved.facts.checkpoint.config)
    except UnknownShapeError:
        return None
