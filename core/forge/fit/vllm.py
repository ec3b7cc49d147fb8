"""What vLLM takes of a GPU: a part of the whole card, of which the cache gets what weights, work and graphs leave. Pure.

vLLM 0.20 counts so (its gpu_worker.py and kv_cache_utils.py): room for the cache = gpu_memory_utilization x what CUDA says that
the card has - weights - the peak of a pass with max_num_batched_tokens and of sampling for max_num_seqs - CUDA graphs. It
refuses to start where less than the whole share is free, and where the room does not hold one request of max_model_len.
"""

import math
from collections.abc import Sequence

from msgspec.structs import replace

from forge.files.safetensors import Tensor
from forge.fit.memory import CONTEXT, GIB, Disk, Estimate, KvCache, Need, kv_cache
from forge.fit.model_shape import Shape
from forge.fit.weights import Terms, Weights, matrices_of_a_rank, terms
from forge.schema.values import NO_GPUS, Gpu, Recipe
from forge.schema.vllm_clashes import USUAL_TOKENS
from forge.schema.vllm_environment import KV_BYTES, USUAL

UTILIZATION = "gpu_memory_utilization"
BLOCK = 16
"""Tokens of a cache block on CUDA; a sequence takes whole blocks."""
SAMPLING = 9
"""The sampler's copies of the logits in float32: themselves, sorted with their places, probabilities, sums, what is drawn."""
LARGEST_GRAPH = 512
"""Requests of the largest CUDA graph, or twice max_num_seqs where that is less."""
OF_GRAPH = 150 * 1024
"""Bytes of a graph for each layer (0.13 GiB for 30 graphs of 30 layers, SmolLM2 on an H100: one model, one card)."""
LIBRARIES = Estimate(GIB // 5, GIB // 10, GIB // 2)
"""What CUDA's libraries take beside torch in a measured pass (0.16 GiB on an H100, which set it; 0.20 on an RTX 3090)."""
RANKS = Estimate(GIB // 2, GIB // 8, 2 * GIB)
"""What speaking among ranks adds on each."""
TRITON = Estimate(6 * 10**8, 0, 8 * 10**8)
"""What Triton itself holds of a card, once for all its models: 0.6 GB on an H100, as NVML told."""
ON_CPU = Estimate(2 * GIB, GIB, 3 * GIB)
"""Triton, the engine and its worker: three Pythons, two of them with torch."""


def usable(gpu: Gpu) -> int:
    """A card's memory as CUDA says it, of which vLLM takes its part: NVML's total less what the driver keeps.

    79.16 GiB for an H100, where people's logs of vLLM say 79.22; 23.67 for an RTX 4090, where they say 23.55.
    """
    return gpu.memory - GIB // 4 - gpu.memory * 3 // 1000


def on_gpu(recipe: Recipe, *, here: bool) -> bool:
    """Whether a GPU serves it, where one is (``here``) or is named."""
    return here and recipe.runtime.gpus != NO_GPUS


def utilization(recipe: Recipe, usual: float = USUAL) -> float:
    """The part of the whole card that it takes; ``usual`` is that vLLM's own default."""
    stated = recipe.serve.vllm.get(UTILIZATION)
    return float(stated) if isinstance(stated, int | float) and not isinstance(stated, bool) else usual


def need(recipe: Recipe, shape: Shape, held: Weights, checkpoint: int, usual: float = USUAL) -> Need:
    """All of a recipe's bytes under vLLM. ``held`` are its weights under its terms, ``checkpoint`` the bytes of its files."""
    how = terms(recipe, shape)
    nothing = Estimate.exact(0)
    return Need(
        weights=held,
        cache=_cache(recipe, shape, how),
        activation=work(recipe, shape, how) + graphs(recipe, shape, how),
        slots=recipe.build.max_batch_size,
        length=recipe.build.max_seq_len,
        build_gpu=nothing,
        build_host=nothing,
        disk=Disk(checkpoint, 0, 0),
        utilization=utilization(recipe, usual),
    )


def adapters(recipe: Recipe, shape: Shape, tensors: Sequence[Tensor], rank: int) -> Estimate:
    """Room for max_loras adapters of max_lora_rank, which vLLM keeps over every matrix, whichever an adapter changes; over the
    embeddings only in some architectures (its lora/layers)."""
    stated = recipe.serve.vllm
    rank, count = _whole(stated.get("max_lora_rank"), rank), _whole(stated.get("max_loras"), len(recipe.lora))
    how = terms(recipe, shape)
    if not rank or not recipe.lora:
        return Estimate.exact(0)
    each = count * rank * how.width
    matrices = sum(map(sum, matrices_of_a_rank(tensors, shape, how)))
    ends = 2 * (shape.vocabulary + shape.hidden)
    low = each * matrices // how.pp
    return Estimate(low + each * ends, low, low + each * ends)


def _whole(stated: object, usual: int) -> int:
    return stated if isinstance(stated, int) and not isinstance(stated, bool) else usual


def work(recipe: Recipe, shape: Shape, how: Terms) -> Estimate:
    """The peak beside the weights that vLLM measures: a pass over max_num_batched_tokens or, after it, sampling.

    Llama 3 8B with 256 sequences: 1.26 GiB measured by a vLLM of December 2024, 1.18 by this.
    """
    tokens, slots = batched_tokens(recipe), recipe.build.max_batch_size
    layer = tokens * (2 * -(-shape.busy // how.tp) * 2 + 7 * shape.hidden) * how.width // 2
    sampling = slots * shape.vocabulary * (SAMPLING * 4 + how.width) + tokens * shape.hidden * how.width
    libraries = LIBRARIES + RANKS if how.tp * how.pp > 1 else LIBRARIES
    return Estimate.about(max(layer, sampling), 60 if shape.experts else 35) + libraries


def graphs(recipe: Recipe, shape: Shape, how: Terms) -> Estimate:
    """CUDA graphs: one for each size of a mixed batch, and one for each size of a batch that only decodes."""
    if recipe.serve.vllm.get("enforce_eager") is True:
        return Estimate.exact(0)
    slots = recipe.build.max_batch_size
    count = _sizes(min(2 * slots, LARGEST_GRAPH)) + _sizes(min(slots, LARGEST_GRAPH))
    size = count * OF_GRAPH * -(-shape.layers // how.pp)
    return Estimate(size, size // 2, 3 * size)


def _sizes(most: int) -> int:
    """How many sizes of a batch up to ``most`` get a graph: 1, 2, 4, each eighth up to 256, each sixteenth after."""
    return len([each for each in (1, 2, 4, *range(8, 256, 8), *range(256, LARGEST_GRAPH + 1, 16)) if each <= most])


def batched_tokens(recipe: Recipe) -> int:
    """The most tokens of one pass (max_num_batched_tokens)."""
    stated = recipe.serve.vllm.get("max_num_batched_tokens")
    if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0:
        return stated
    whole = recipe.build.max_batch_size * recipe.build.max_seq_len
    if recipe.serve.vllm.get("enable_chunked_prefill") is False:
        return max(USUAL_TOKENS, recipe.build.max_seq_len)
    return min(USUAL_TOKENS, whole)


def _cache(recipe: Recipe, shape: Shape, how: Terms) -> KvCache:
    """The cache: a layer with a window keeps that, and what one pass may add before older tokens are let go."""
    found = kv_cache(shape, how)
    more = batched_tokens(recipe) - 1
    return replace(found, windows=tuple(window + more if window else 0 for window in found.windows), block=BLOCK)


def without_gpu(wanted: Need) -> Need:
    """The same on a CPU, where there is no card to take a part of, and the programs themselves are in the same memory."""
    return replace(wanted, activation=ON_CPU, utilization=0.0)


def parts(gpu: Gpu, needs: Sequence[Need], budget: int, before: int) -> tuple[float, ...] | None:
    """gpu_memory_utilization of each of several models on a card, of which all may take ``budget`` bytes together and others
    have ``before``; None where not even their least caches fit.

    Each gets its weights, its work and a cache for one request, and of the rest a part in proportion to what its slots would
    fill. Rounded down; each process has a CUDA context beside its part.
    """
    whole = usable(gpu)
    room = min(budget, int(whole * USUAL)) - before - CONTEXT * len(needs)
    least = [need.fixed.size + need.least for need in needs]
    more = [need.wanted - need.least for need in needs]
    rest = room - sum(least)
    if rest < 0:
        return None
    sizes = [
        own + (rest * each // sum(more) if sum(more) else rest // len(needs)) for own, each in zip(least, more, strict=True)
    ]
    return tuple(math.floor(size / whole * 1000) / 1000 for size in sizes)


# -- verdict


def room(recipe: Recipe, wanted: Need, gpu: Gpu) -> Estimate:
    """Bytes that the cache gets: expected, at best and at worst. kv_cache_memory_bytes says it itself."""
    stated = stated_cache(recipe)
    if stated is not None:
        return Estimate.exact(stated)
    share, fixed = int(usable(gpu) * wanted.utilization), wanted.fixed
    return Estimate(share - fixed.size, share - fixed.high, share - fixed.low)


def stated_cache(recipe: Recipe) -> int | None:
    """kv_cache_memory_bytes, where the recipe says it: gpu_memory_utilization then counts for nothing."""
    stated = recipe.serve.vllm.get("kv_cache_memory_bytes")
    return stated if isinstance(stated, int) and not isinstance(stated, bool) else None


def missing(recipe: Recipe, wanted: Need, gpu: Gpu) -> int:
    """Bytes that are not free of those that vLLM asks for when it starts; 0 for a card that is only named and takes it."""
    free = min(gpu.available, usable(gpu)) - CONTEXT
    return max(asked(recipe, wanted, gpu) - free, 0)


def asked(recipe: Recipe, wanted: Need, gpu: Gpu) -> int:
    """Bytes of a card that vLLM asks for when it starts."""
    stated = stated_cache(recipe)
    return int(usable(gpu) * wanted.utilization) if stated is None else stated + wanted.fixed.size


def left(recipe: Recipe, wanted: Need, gpu: Gpu) -> Estimate:
    """Bytes of a card that stay free beside one such model, as NVML tells them: less its part, a CUDA context and Triton."""
    free = min(gpu.available, usable(gpu)) - taken(recipe, wanted, gpu)
    return Estimate(*(max(free - each, 0) for each in (TRITON.size, TRITON.high, TRITON.low)))


def taken(recipe: Recipe, wanted: Need, gpu: Gpu) -> int:
    """Bytes of a card that a model takes which says itself how much."""
    return CONTEXT + asked(recipe, wanted, gpu)


def on_cpu(recipe: Recipe, wanted: Need, host: int) -> tuple[int, int]:
    """Bytes for the cache on a CPU with so much free memory, and how many are missing for all that it takes."""
    stated = stated_cache(recipe)
    if stated is None:
        stated = int(host * utilization(recipe)) if UTILIZATION in recipe.serve.vllm else KV_BYTES
    return stated, max(stated + wanted.fixed.size - host, 0)
