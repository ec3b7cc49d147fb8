"""Whether a recipe's bytes fit a place: one GPU, or this machine's memory for a twin. Pure."""

from collections.abc import Callable
from enum import StrEnum
from functools import cache

from msgspec import Struct
from msgspec.structs import replace

from forge.files.safetensors import Tensor
from forge.fit import memory, vllm, weights
from forge.fit.memory import Estimate, Need
from forge.fit.model_shape import Shape
from forge.fit.weights import Terms, Weights
from forge.schema.values import Gpu, Recipe, Role, RuntimeKind
from forge.schema.vllm_environment import USUAL

CAPABILITIES = {"fp8": "8.9", "fp8_kv": "8.9", "w4a8_awq": "8.9", "int4_awq": "8.0", "nvfp4": "10.0"}
"""Compute capability from which a quantization has kernels. Source: TensorRT-LLM's support matrix."""
BFLOAT16 = "8.0"


class Verdict(StrEnum):
    """``LIMITED``: the longest request fits, but not all slots at full length at once; further requests wait their turn."""

    FITS = "fits"
    LIMITED = "fits, with a limited cache"
    NO = "does not fit"


class Load(Struct, frozen=True):
    """One recipe with all that was learnt of its checkpoint. ``basis`` says from what the tensors are known."""

    recipe: Recipe
    shape: Shape
    tensors: tuple[Tensor, ...]
    checkpoint: int
    """Bytes of the source's files."""
    draft: int = 0
    """Bytes of a draft's weights."""
    lora_rank: int = 0
    """The rank for which room is kept in each of its adapters' places; 0 where it has no adapters."""
    lora_bytes: int = 0
    """What adapters take of a GPU together, where TensorRT-LLM serves it."""
    basis: str = "the safetensors headers"
    usual: float = USUAL
    """gpu_memory_utilization of the vLLM that serves it, where the recipe says none."""


class Judgement(Struct, frozen=True):
    """``room`` in bytes is what the cache gets, ``tokens`` what it holds; ``short`` the bytes that are missing for one request.

    ``certain`` is false where the estimates' span has another verdict at one of its ends.
    """

    verdict: Verdict
    certain: bool
    room: int
    tokens: int
    sequences: int
    short: int = 0
    absent: int = 0
    """Bytes that are not free of those that vLLM asks for at its start, whatever a request needs."""
    asked: int = 0
    """Bytes of a card that vLLM takes: weights, work and ``room`` together; 0 elsewhere."""
    left: Estimate | None = None
    """Bytes of the card that stay free beside it, as NVML tells them."""


def bench(load: Load) -> Callable[[Recipe], Need]:
    """Needs of variations of a load's recipe; weights are weighed once for all that share their terms."""

    @cache
    def weigh(how: Terms) -> Weights:
        return weights.weights(load.tensors, load.shape, how)

    def needed(recipe: Recipe) -> Need:
        held = weigh(weights.terms(recipe, load.shape))
        if recipe.runtime.kind is RuntimeKind.VLLM:
            wanted = vllm.need(recipe, load.shape, held, load.checkpoint, load.usual)
            room = vllm.adapters(recipe, load.shape, load.tensors, load.lora_rank)
            return replace(wanted, adapters=room, draft=load.draft)
        wanted = memory.need(recipe, load.shape, held, load.checkpoint, load.draft)
        return replace(wanted, adapters=memory.Estimate.exact(load.lora_bytes))

    return needed


def judge(recipe: Recipe, wanted: Need, gpu: Gpu) -> Judgement:
    """A recipe's need against one GPU that nothing else shares, with the fraction that the recipe states."""
    if wanted.utilization:
        return _judge_vllm(recipe, wanted, gpu)
    before = taken_before(gpu) + wanted.fixed
    fraction = recipe.serve.fraction
    left = (int(fraction * (gpu.available - taken)) for taken in (before.size, before.low, before.high))
    middle, best, worst = (_capped(recipe, wanted, room) for room in left)
    return _judgement(wanted, middle, same=_verdict(wanted, best) is _verdict(wanted, worst), fraction=fraction)


def judge_twin(wanted: Need, available: int) -> Judgement:
    """A twin's need against this machine's memory."""
    left = (available - taken for taken in (wanted.fixed.size, wanted.fixed.low, wanted.fixed.high))
    middle, best, worst = left
    return _judgement(wanted, middle, same=_verdict(wanted, best) is _verdict(wanted, worst), fraction=1.0)


def _judge_vllm(recipe: Recipe, wanted: Need, gpu: Gpu) -> Judgement:
    """vLLM's part of the whole card; what is not free of that keeps it from starting, and is ``absent``."""
    room, absent = vllm.room(recipe, wanted, gpu), vllm.missing(recipe, wanted, gpu)
    same = _verdict(wanted, room.low) is _verdict(wanted, room.high)
    judged = _judgement(wanted, room.size, same=same, fraction=1.0)
    if absent:
        return replace(judged, verdict=Verdict.NO, certain=True, absent=absent)
    return replace(judged, asked=vllm.asked(recipe, wanted, gpu), left=vllm.left(recipe, wanted, gpu))


def judge_on_cpu(recipe: Recipe, wanted: Need, available: int) -> Judgement:
    """vLLM's need on a CPU against this machine's memory: its cache has a size of its own."""
    room, short = vllm.on_cpu(recipe, wanted, available)
    judged = _judgement(wanted, room, same=True, fraction=1.0)
    return replace(judged, verdict=Verdict.NO, absent=short) if short else judged


def taken_before(gpu: Gpu) -> Estimate:
    """What is gone of a GPU before any model; where its free bytes were asked, the driver's share is gone already."""
    return memory.overhead(gpu.memory if gpu.free is None else 0)


def objections(recipe: Recipe, how: Terms, gpu: Gpu) -> tuple[str, ...]:
    """What this GPU has no kernels for."""
    if recipe.runtime.kind is RuntimeKind.TWIN:
        return ()
    found: list[str] = []
    needed = CAPABILITIES.get(how.quantization, "")
    if needed and not gpu.at_least(needed):
        found.append(f"{how.quantization} needs compute capability {needed}, {gpu.name} has {gpu.capability}")
    if how.dtype == "bfloat16" and not gpu.at_least(BFLOAT16):
        found.append(f"bfloat16 needs compute capability {BFLOAT16}, {gpu.name} has {gpu.capability}")
    return tuple(found)


def refused(judged: Judgement) -> Judgement:
    """The same figures on a GPU that has no kernels for it."""
    return replace(judged, verdict=Verdict.NO, certain=True)


def _capped(recipe: Recipe, wanted: Need, room: int) -> int:
    """The room for the cache, never more than what the recipe caps it at (max_tokens_in_paged_kv_cache)."""
    cap = recipe.serve.parameters.get(Role.TENSORRT_LLM, {}).get("max_tokens_in_paged_kv_cache")
    return min(room, cap * wanted.cache.per_token) if isinstance(cap, int) and cap > 0 else room


def _verdict(wanted: Need, room: int) -> Verdict:
    if room >= wanted.wanted:
        return Verdict.FITS
    return Verdict.LIMITED if room >= wanted.least else Verdict.NO


def _judgement(wanted: Need, room: int, *, same: bool, fraction: float) -> Judgement:
    verdict = _verdict(wanted, room)
    short = int((wanted.least - room) / fraction) if verdict is Verdict.NO else 0
    sequences = max(room, 0) // wanted.least if wanted.least else wanted.slots
    return Judgement(verdict, same, max(room, 0), wanted.cache.tokens(room), sequences, short)
