"""How many bytes a recipe needs: key-value cache, activations, building, disk, beside its weights. Arithmetic only.

The cache is exact. What TensorRT-LLM allocates beside it is estimated, each figure with the span in which its measured values
lie (docs/fit.md has the measurements).
"""

from msgspec import Struct

from forge.fit.model_shape import Shape
from forge.fit.weights import Terms, Weights, stage_ends, terms
from forge.schema.values import Recipe, Role, RuntimeKind

MIB, GIB = 1 << 20, 1 << 30
MAX_NUM_TOKENS = 8192
"""trtllm-build's own, where a recipe says nothing."""
CALIBRATED = frozenset({"fp8", "nvfp4", "int4_awq", "w4a8_awq", "int8_sq", "fp8_kv", "int8_kv"})
"""Quantizations for which quantize.py runs the whole unquantized model."""


class Estimate(Struct, frozen=True):
    """Bytes as they are expected, and the span in which they may lie."""

    size: int
    low: int
    high: int

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.size + other.size, self.low + other.low, self.high + other.high)

    @classmethod
    def exact(cls, size: int) -> "Estimate":
        return cls(size, size, size)

    @classmethod
    def about(cls, size: int, percent: int) -> "Estimate":
        return cls(size, size * (100 - percent) // 100, size * (100 + percent) // 100)


NOTHING = Estimate.exact(0)

# -- key-value cache


class KvCache(Struct, frozen=True):
    """The cache on the GPU that holds the most of it. ``windows``: for each of its layers, tokens kept at most (0: all)."""

    layer: int
    """Bytes that a token leaves in one layer."""
    windows: tuple[int, ...]
    encoded: int = 0
    """Tokens of an encoder's text, of which every layer keeps keys and values too, in a part of the cache of its own."""
    block: int = 1
    """Tokens that are taken together: a sequence has whole blocks."""
    cross: float = 0.5
    """That part (cross_kv_cache_fraction), where there is an encoder."""

    @property
    def per_token(self) -> int:
        """Bytes of one more token while no window is full."""
        return self.layer * len(self.windows)

    def sequence(self, tokens: int) -> int:
        """Bytes of one sequence of so many tokens; with an encoder, so many that both parts have room for it."""
        held = -(-tokens // self.block) * self.block
        own = self.layer * sum(min(-(-(window or held) // self.block) * self.block, held) for window in self.windows)
        if not self.encoded:
            return own
        return max(int(own / (1 - self.cross)), int(self.of_encoder / self.cross))

    @property
    def of_encoder(self) -> int:
        """Bytes that the decoder keeps of one encoder's text of the longest kind."""
        return self.layer * len(self.windows) * self.encoded

    def tokens(self, room: int) -> int:
        """How many tokens of short sequences fit into so many bytes."""
        return room // self.per_token if self.windows and room > 0 else 0


def kv_cache(shape: Shape, how: Terms, recipe: Recipe | None = None) -> KvCache:
    """The cache of the pipeline stage with the most layers that keep one. Latent attention is repeated on every rank.

    ``recipe`` says how long an encoder's text may be, and which part of the cache is kept for it.
    """
    layer = how.cache_width * (shape.latent or 2 * -(-shape.kv_heads // how.tp) * shape.head_dim)
    first, stages = 0, list[tuple[int, ...]]()
    for end in stage_ends(shape.layers, how.pp):
        stages.append(tuple(window if how.windowed else 0 for at, window in shape.windows if first <= at < end))
        first = end
    if not shape.encoder_layers or recipe is None:
        return KvCache(layer, max(stages, key=len))
    stated = recipe.serve.parameters.get(Role.TENSORRT_LLM, {}).get("cross_kv_cache_fraction")
    cross = stated if isinstance(stated, float) and 0 < stated < 1 else 0.5
    return KvCache(layer, max(stages, key=len), recipe.build.max_input_len, cross=cross)


# -- what is estimated


class Disk(Struct, frozen=True):
    """Bytes that a build leaves on disk: the store holds all three, and a repository links to the last."""

    checkpoint: int
    converted: int
    engine: int

    @property
    def total(self) -> int:
        return self.checkpoint + self.converted + self.engine


class Need(Struct, frozen=True):
    """One recipe's bytes on the GPU with the most of them; of a twin, in its process."""

    weights: Weights
    cache: KvCache
    activation: Estimate
    slots: int
    """Sequences at a time: batch times beams."""
    length: int
    """Tokens of a sequence at most."""
    build_gpu: Estimate
    build_host: Estimate
    disk: Disk
    calibration: int = 0
    """What quantize.py would hold on all GPUs together, about; it keeps in host memory what does not fit, and is slow then."""
    draft: int = 0
    """Weights of a second checkpoint, whole on every GPU."""
    utilization: float = 0.0
    """The part of the whole card that it takes, where that is how its runtime counts (vLLM); 0 for the others."""
    adapters: Estimate = NOTHING
    """Room for LoRA adapters, beside the weights."""

    @property
    def fixed(self) -> Estimate:
        """What is there before the cache is."""
        return Estimate.exact(self.weights.heaviest + self.draft) + self.adapters + self.activation

    @property
    def least(self) -> int:
        """Cache for one sequence of full length: with less, the longest request can never run."""
        return self.cache.sequence(self.length)

    @property
    def wanted(self) -> int:
        """Cache for every slot at full length: with more, there is nothing to fill it but reuse."""
        return self.slots * self.least


def tokens_at_once(recipe: Recipe) -> int:
    """The most tokens that go through the engine in one pass (max_num_tokens, as trtllm-build takes it)."""
    limits = recipe.build
    return min(limits.max_num_tokens or MAX_NUM_TOKENS, limits.max_batch_size * limits.max_beam_width * limits.max_seq_len)


def activation(recipe: Recipe, shape: Shape, how: Terms) -> Estimate:
    """What TensorRT-LLM allocates before the cache: the engine's execution context, and buffers for sampling.

    Measured values of the context lie between 2 and 5 widths of the hidden state beside the two of the feed-forward part; the
    buffers for sampling are about seven times the logits in float32. A mixture of experts is spread wider.
    """
    if recipe.runtime.kind is RuntimeKind.TWIN:
        return _twin_overhead(recipe, shape)
    slots, tokens = recipe.build.max_batch_size * recipe.build.max_beam_width, tokens_at_once(recipe)
    layer = tokens * (2 * -(-shape.busy // how.tp) * 2 + 7 * shape.hidden) * how.width // 2
    logits = slots * shape.vocabulary * how.width
    if any(recipe.build.args.get(flag) is True for flag in ("gather_context_logits", "gather_all_token_logits")):
        logits = max(logits, tokens * shape.vocabulary * how.width)
    return Estimate.about(layer + max(logits, 32 * MIB) + buffers(recipe, shape), 60 if shape.experts else 25)


def buffers(recipe: Recipe, shape: Shape) -> int:
    """The part of the activations that is for sampling, outside of the engine: several copies of the logits in float32."""
    return 7 * recipe.build.max_batch_size * recipe.build.max_beam_width * shape.vocabulary * 4


def _twin_overhead(recipe: Recipe, shape: Shape) -> Estimate:
    """Triton, its Python processes (one each for preprocessing, postprocessing and the model, and one for each stream through
    bls, at 48 MiB of their own, measured), and one pass over the longest prompt."""
    processes = 4 + (recipe.serve.instances or recipe.build.max_batch_size)
    prompt = recipe.build.max_input_len * (4 * shape.hidden + 3 * shape.intermediate) * 4
    return Estimate.about(48 * MIB * processes + prompt, 30)


def overhead(memory: int) -> Estimate:
    """What the driver keeps, the CUDA context and the libraries take of a GPU with so much memory, before any model.

    The driver's part is 0.4 % (H200) to 1.1 % (A100) of it; context and cuBLAS take 0.7 GiB on an H200.
    """
    return Estimate(3 * GIB // 4 + memory // 100, GIB // 4 + memory // 250, 5 * GIB // 4 + memory // 80)


CONTEXT = GIB // 2
"""Bytes of one more process with a CUDA context on a GPU that has one already."""


def need(recipe: Recipe, shape: Shape, held: Weights, checkpoint: int, draft: int = 0) -> Need:
    """All of a recipe's bytes. ``held`` are its weights under its terms, ``checkpoint`` the bytes of its source's files."""
    how = terms(recipe, shape)
    work = activation(recipe, shape, how)
    limits = recipe.build
    whole = held.parameters * how.width
    calibration = 0
    if recipe.runtime.kind is not RuntimeKind.ENGINE:  # nothing is converted or built
        build = host = Estimate.exact(0)
        disk = Disk(checkpoint, 0, 0)
    else:
        rank = held.heaviest
        build = Estimate(rank + GIB // 4, rank, rank * 3 // 2 + GIB)
        host = Estimate(whole + held.total, whole, 2 * (whole + held.total))
        disk = Disk(checkpoint, held.total, held.total)
        if how.quantization in CALIBRATED:
            calibration = whole * 115 // 100
    return Need(
        weights=held,
        cache=kv_cache(shape, how, recipe),
        activation=work,
        slots=limits.max_batch_size * limits.max_beam_width,
        length=limits.max_seq_len,
        build_gpu=build,
        build_host=host,
        calibration=calibration,
        disk=disk,
        draft=draft,
    )
