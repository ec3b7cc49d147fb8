"""LoRA adapters of a recipe: held against their checkpoint, fetched, and laid out beside it. Pure."""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import msgspec

from forge.errors import Problem
from forge.files.safetensors import Tensor
from forge.plan.resolved import Resolved
from forge.plan.steps import Link, Step, fetching
from forge.schema.adapters import FOLDER, TASKS, Adapter, Pair
from forge.schema.values import RuntimeKind, SourceKind, TextFile

_SAVED = "bring what PEFT's save_pretrained has written"
_ANOTHER = "name an adapter that was made for this [source]"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""dtypes of weights that have the shape that their module says; those that are quantized may be packed."""


_OTHER_BASE = ("pissa", "olora", "corda", "loftq")
"""Beginnings of adapters with which PEFT puts other weights below them, each time that it loads one (tuners/lora/layer.py)."""
_CONVERTED = "save it with path_initial_model_for_weight_conversion (PEFT), or merge it into the checkpoint"
_LARGEST = sys.float_info.max
_NAME, _STEPS = 64, 10**8
"""Letters of a long module's name, and how many places of it a matcher may try."""
_NOT_LORA = ("use_dora", "lora_bias", "layer_replication", "alora_invocation_tokens")
MERGE = "merge it into the checkpoint (PEFT's merge_and_unload), and name that as [source]"


def none_here(resolved: Resolved) -> Iterator[Problem]:
    """For the one runtime that has no adapters: that it has none."""
    if resolved.recipe.lora and resolved.recipe.runtime.kind is RuntimeKind.TWIN:
        what = "the twin has no adapters"
        yield Problem("lora", what, 'take them away, or say runtime.kind = "vllm", "engine" or "llmapi"')


def check(resolved: Resolved) -> Iterator[Problem]:
    """What keeps an adapter from being added to this checkpoint, as far as that is sure before anything is fetched."""
    for adapter in resolved.adapters:
        for what, hint in (*_of_itself(adapter), *_over(adapter, resolved.tensors)):
            yield Problem(f"lora.{adapter.name}", what, hint)


def beyond(adapter: Adapter, who: str) -> Iterator[tuple[str, str]]:
    """What of an adapter TensorRT-LLM has nothing for, and the way out; ``who`` is whom forge lays none of that for."""
    if kinds := [kind for kind in _NOT_LORA if adapter.config.get(kind)]:
        yield f"its adapter_config.json has {' and '.join(kinds)}, which forge does not lay for {who}", MERGE
    if adapter.config.get("modules_to_save"):
        yield "it replaces modules whole (modules_to_save), and an adapter here does not", MERGE


def notes(resolved: Resolved, later: str = "vLLM looks at them") -> Iterator[str]:
    """What an adapter says that it was made for, where that is another name than the recipe's. ``later`` is who looks at what
    nobody has seen before it is fetched."""
    source = resolved.recipe.source
    for adapter in resolved.adapters:
        if source.kind is SourceKind.HUB and adapter.base and adapter.base != source.address:
            yield f"adapter {adapter.name} says that it was trained over {adapter.base}, and goes over {source.address}"
        if not adapter.tensors:
            yield f"adapter {adapter.name}: its source does not show its matrices before they are fetched; {later}"


def steps(resolved: Resolved) -> tuple[tuple[str, Step], ...]:
    """Each adapter, fetched, under the name that an entry has for it."""
    name = resolved.recipe.name
    return tuple((need(adapter), fetching(f"{name}: {need(adapter)}", adapter.pinned)) for adapter in resolved.adapters)


def links(resolved: Resolved, assets: str) -> tuple[Link, ...]:
    """Their files under ``assets``, each adapter in a folder of its name."""
    return tuple(
        Link(need(adapter), file.path, f"{folder(assets, adapter.name)}/{file.path}")
        for adapter in resolved.adapters
        for file in adapter.pinned.files
    )


def tasks(resolved: Resolved, assets: str) -> tuple[TextFile, ...]:
    """The number of each adapter, by which TensorRT-LLM knows it."""
    if not resolved.adapters:
        return ()
    numbers = {adapter.name: task for task, adapter in enumerate(resolved.adapters, 1)}
    return (TextFile(f"{assets}/{TASKS}", msgspec.json.format(msgspec.json.encode(numbers), indent=2).decode() + "\n"),)


def folder(assets: str, name: str) -> str:
    """Where an adapter stands under a recipe's assets."""
    return f"{assets}/{FOLDER}/{name}"


def need(adapter: Adapter) -> str:
    """What an entry calls an adapter."""
    return f"lora {adapter.name}"


# -- the checks

_LAYER = re.compile(r"\blayers\.(\d+)\.", re.ASCII)

Found = Iterator[tuple[str, str]]
"""What is wrong, and how that is fixed."""


def _of_itself(adapter: Adapter) -> Found:
    kind = str(adapter.config.get("peft_type") or "LORA")
    if kind != "LORA":
        yield f"is an adapter of PEFT's kind {kind}, and not LoRA", "name a LoRA adapter"
        return
    yield from _odd(adapter.config)
    if adapter.r < 1:
        yield "its adapter_config.json states no rank (r)", _SAVED
        return
    if adapter.stated is not None and adapter.r > adapter.stated:
        yield f"its rank (r) is {adapter.r}, above the {adapter.stated} of `rank`", f"set rank = {adapter.r}, or take it away"
    if not adapter.tensors:
        return
    if strange := next(adapter.strange(), ""):
        yield f"its tensor {strange} is no matrix of LoRA's", "save it without modules_to_save, bias and DoRA"
    if whole := next((each for each in adapter.tensors if not each.floating), None):
        yield f"its tensor {whole.name} is of {whole.dtype}, and matrices of LoRA are not", _SAVED
    for pair in adapter.pairs():
        if wrong := _pair(pair, adapter.r):
            yield wrong, "bring the whole adapter, as PEFT has saved it"
            return


def _odd(config: Mapping[str, object]) -> Found:
    """Values of another type than PEFT's LoraConfig has there: every loader stumbles over them."""
    modules, alpha, start = config.get("target_modules"), config.get("lora_alpha"), config.get("init_lora_weights")
    if not (modules is None or isinstance(modules, str) or _names(modules)):
        yield f"its adapter_config.json has target_modules = {modules!r:.60}, and not names", _SAVED
    if not (alpha is None or _number(alpha)):
        yield f"its adapter_config.json has lora_alpha = {alpha!r:.60}, and not a number", _SAVED
    for key in ("alpha_pattern", "rank_pattern"):
        if wrong := _pattern(config.get(key)):
            yield f"its adapter_config.json has {key} = {config.get(key)!r:.60}, {wrong}", _SAVED
    if isinstance(start, str) and start.lower().startswith(_OTHER_BASE):
        yield f"it goes over weights that PEFT changes when it loads it (init_lora_weights = {start!r:.60})", _CONVERTED


def _number(given: object) -> bool:
    """Whether it is one that a float can be."""
    return isinstance(given, int | float) and not isinstance(given, bool) and abs(given) <= _LARGEST


def _pattern(given: object) -> str:
    """What is wrong with numbers for modules, by a regular expression each."""
    if given is None:
        return ""
    stated = cast("dict[str, object]", given) if isinstance(given, dict) else None
    if stated is None or not all(map(_number, stated.values())):
        return "and not a number for each module"
    for key in stated:
        try:
            re.compile(f"({key})")
        except re.error as error:
            return f"and {key!r:.60} is no regular expression: {error}"
        if _endless(key):
            return f"and matching {key!r:.60} may take for ever"
    return ""


def _endless(key: str) -> bool:
    """Whether a backtracking matcher may have more to try than any machine has time for: places of a module's name, in order,
    for what is repeated, the branches of each group, halves for what may be absent; a repeated group has no such bound."""
    plain = re.sub(r"\\.", "x", f"(.*.)?({key})", flags=re.DOTALL).replace("(?", "(")
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
    repeats, ways = len(re.findall(r"[*+{]", plain)), 1 << plain.count("?")
    if re.search(r"\)[*+{]", plain):
        return True
    while ways <= _STEPS and (group := re.search(r"\(([^()]*)\)", plain)):
        ways *= 1 + group[1].count("|")
        plain = plain.replace(group[0], "x", 1)
    return math.comb(_NAME + repeats, repeats) * ways > _STEPS


def _names(given: object) -> bool:
    return isinstance(given, list) and all(isinstance(each, str) for each in cast("list[object]", given))


def _pair(pair: Pair, r: int) -> str:
    """What is wrong with the two matrices by themselves: the first is (r, inputs), the second (outputs, r)."""
    if pair.a is None or pair.b is None:
        return f"{pair.module} has lora_{'B' if pair.a is None else 'A'} alone"
    if len(pair.a) != 2 or len(pair.b) != 2:
        return ""  # experts in one tensor, a convolution
    inner = (pair.a[0], pair.b[1])
    if not all(inner):
        return f"{pair.module}: its matrices have the rank 0"
    if inner[0] != inner[1]:
        return f"{pair.module}: lora_A is {pair.a}, and lora_B {pair.b}: their ranks differ"
    return f"{pair.module} has the rank {inner[0]}, above the r of its config ({r})" if inner[0] > r else ""


def _over(adapter: Adapter, tensors: Sequence[Tensor]) -> Found:
    """Whether the checkpoint has what the adapter changes; nothing is said where nobody knows its tensors."""
    if not tensors:
        return
    held = {tensor.name.removesuffix(".weight"): tensor for tensor in tensors}
    parts = {part for tensor in tensors for part in tensor.name.split(".")}
    layers = {found[1] for tensor in tensors if (found := _LAYER.search(tensor.name))}
    for pair in adapter.pairs():
        leaf = pair.module.rpartition(".")[2]
        if leaf not in parts:
            yield f"it changes {pair.module}, and the checkpoint has no {leaf}", _ANOTHER
            return
        found = _LAYER.search(pair.module)
        if found and layers and found[1] not in layers:
            yield f"it changes {pair.module:.90}, and the checkpoint has no layer {found[1]:.9}", _ANOTHER
            return
        if wrong := _misfit(pair, _module(pair.module, held)):
            yield wrong, _ANOTHER
            return


def _module(name: str, held: Mapping[str, Tensor]) -> Tensor | None:
    """The weight of a module; transformers moves what stands before the layers from one version to the next."""
    if name in held:
        return held[name]
    _, mark, rest = name.partition("layers.")
    alike = [tensor for other, tensor in held.items() if mark and other.endswith(f".{mark}{rest}")]
    return alike[0] if len(alike) == 1 else None


def _misfit(pair: Pair, weight: Tensor | None) -> str:
    """Whether the pair's outside is the weight's, (outputs, inputs); some models keep theirs the other way round."""
    if weight is None or weight.dtype not in _FLOATS or pair.a is None or pair.b is None:
        return ""
    if any(len(shape) != 2 for shape in (weight.shape, pair.a, pair.b)):
        return ""
    outer = (pair.b[0], pair.a[1])
    if outer in (weight.shape, weight.shape[::-1]):
        return ""
    return f"it changes {pair.module} as {outer[0]} x {outer[1]}, and the checkpoint's is {weight.shape[0]} x {weight.shape[1]}"
