"""LoRA adapters on TensorRT-LLM's PyTorch path: LLM() is told how many and how large, and a request names a folder. Pure."""

import re
from collections.abc import Iterator, Mapping

from forge.errors import Problem
from forge.fit.model_shape import Shape
from forge.plan import adapters
from forge.plan.resolved import Resolved
from forge.trtllm import lora

INPUTS = ("lora_id", "lora_name", "lora_path")
"""Inputs of NVIDIA's llmapi model for an adapter, since its PR 14079 of May 2026."""
CONFIG = "config.pbtxt"
_COMMENT = re.compile(r"#[^\n]*")


def check(resolved: Resolved) -> Iterator[Problem]:
    """What keeps the recipe's adapters out of LLM(), and whether the image's model hands a request's to it."""
    if not resolved.recipe.lora:
        return
    yield from adapters.check(resolved)
    for adapter in resolved.adapters:
        where = f"lora.{adapter.name}"
        for what, hint in adapters.beyond(adapter, "llmapi"):
            yield Problem(where, what, hint)
        if own := adapter.own("alpha_pattern", "lora_alpha"):  # load_from_hf of tensorrt_llm/lora_manager.py reads none
            what = f"its adapter_config.json has alpha_pattern ({', '.join(own)}), and LLM() gives every module lora_alpha"
            yield Problem(where, what, f'{adapters.MERGE}; or say runtime.kind = "engine", for which forge reckons it in')
        if strange := next((pair.module for pair in adapter.pairs() if pair.leaf not in lora.PYTORCH), ""):
            what = f"it changes {strange}; adapters of LLM() may change {', '.join(lora.PYTORCH)}"
            yield Problem(where, what, adapters.MERGE)
    if resolved.tooling is not None and resolved.tooling.llmapi and not _offered(resolved):
        what = f"the llmapi model of {resolved.facts.toolchain.image} has no inputs for an adapter ({', '.join(INPUTS)})"
        hint = 'take an image whose model has them (of after May 2026), or say runtime.kind = "engine" or "vllm"'
        yield Problem("lora", what, hint)


def notes(resolved: Resolved) -> Iterator[str]:
    """What is worth knowing of the recipe's adapters beforehand."""
    yield from adapters.notes(resolved, "LLM() looks at them")
    if resolved.adapters and resolved.tooling is None:
        yield "NVIDIA's llmapi model takes adapters since May 2026: the build looks whether this image's does"


def stated(resolved: Resolved) -> Mapping[str, object] | None:
    """lora_config of LLM(); None where there are no adapters. As many places as adapters, of the largest rank."""
    if not resolved.adapters:
        return None
    return {
        "lora_target_modules": list(_modules(resolved)),
        "max_lora_rank": max(adapter.rank for adapter in resolved.adapters),
        "max_loras": len(resolved.adapters),
        "max_cpu_loras": len(resolved.adapters),
    }


def room(resolved: Resolved, shape: Shape) -> int:
    """Bytes that all adapters take of a GPU."""
    most = max((adapter.rank for adapter in resolved.adapters), default=0)
    return len(resolved.adapters) * lora.page(_modules(resolved), shape, most)


def _modules(resolved: Resolved) -> tuple[str, ...]:
    """TensorRT-LLM's modules that the adapters change; those of a Llama where a source does not show its matrices."""
    leaves = {pair.leaf for adapter in resolved.adapters for pair in adapter.pairs()}
    if any(not adapter.tensors for adapter in resolved.adapters):
        leaves.update(lora.LORA_MODULES)
    return lora.enabled({lora.PYTORCH[leaf] for leaf in leaves if leaf in lora.PYTORCH})


def _offered(resolved: Resolved) -> bool:
    held = resolved.tooling.llmapi if resolved.tooling else ()
    text = _COMMENT.sub("", next((each.content for each in held if each.path == CONFIG), ""))
    return all(f'"{name}"' in text for name in INPUTS)
