"""The bytes of a model's weights under a recipe's terms: which tensors are quantized, and how ranks share them out.

Exact but for what a format adds by the way (scales of a few bytes).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from forge.files.safetensors import Tensor
from forge.fit.model_shape import Shape
from forge.schema.config_json import GPTQ
from forge.schema.values import Recipe, Role, RuntimeKind

WIDTHS: Mapping[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4}
GROUP = 128
"""Weights that share a scale in AWQ, where a recipe says nothing."""


class Terms(Struct, frozen=True):
    """What of a recipe decides its bytes, but for its limits."""

    dtype: str
    quantization: str = "none"
    group: int = GROUP
    tp: int = 1
    pp: int = 1
    split_embedding: bool = False
    cache_width: int = 2
    windowed: bool = False
    """Sliding layers keep no more than their window (max_attention_window_size is set)."""
    whole: bool = False
    """Each tensor of a quantized checkpoint is loaded as it is."""
    seeing: bool = False
    """Encoders of images and sound are loaded, too: no engine has them."""

    @property
    def width(self) -> int:
        return WIDTHS[self.dtype]


def terms(recipe: Recipe, shape: Shape) -> Terms:
    """What ``recipe`` asks for; the twin computes in float32, in one process, on weights that may be rounded to fewer bits."""
    if recipe.runtime.kind is RuntimeKind.TWIN:
        rounded = recipe.runtime.weights
        return Terms(
            dtype="bfloat16" if rounded == "bfloat16" else "float32",
            quantization="int8_weight_only" if rounded == "int8" else "none",
            cache_width=4,
        )
    if recipe.runtime.kind is RuntimeKind.VLLM:
        return _terms_of_vllm(recipe, shape)
    table = recipe.convert
    dtype: str = table.dtype
    if dtype == "auto":  # as TensorRT-LLM's scripts take it: the checkpoint's, and half of float32
        dtype = shape.dtype if shape.dtype in {"float16", "bfloat16"} else "float16"
    args = table.args
    narrow = (
        table.quantization in {"fp8_kv", "int8_kv"}
        or args.get("kv_cache_dtype") in {"fp8", "int8"}
        or any(args.get(flag) is True for flag in ("int8_kv_cache", "fp8_kv_cache"))
    )
    before = shape.quantized
    group = args.get("group_size", args.get("awq_block_size", (before and before.group) or GROUP))
    return Terms(
        dtype=dtype,
        quantization=before.like if before and before.like and table.quantization in ("none", *GPTQ) else table.quantization,
        group=group if isinstance(group, int) and group > 0 else GROUP,
        tp=table.tp,
        pp=table.pp,
        split_embedding=args.get("use_parallel_embedding") is True,
        cache_width=1 if narrow else WIDTHS[dtype],
        windowed="max_attention_window_size" in recipe.serve.parameters.get(Role.TENSORRT_LLM, {}),
        seeing=recipe.runtime.kind is RuntimeKind.LLMAPI,
    )


def _terms_of_vllm(recipe: Recipe, shape: Shape) -> Terms:
    """vLLM halves a checkpoint in float32, shares out embeddings, and keeps of a sliding layer its window alone. What is
    quantized already stays as it is; convert.quantization, or ``quantization`` in [serve.vllm], narrows while loading."""
    dtype: str = recipe.convert.dtype
    if dtype == "auto":
        dtype = "float16" if shape.dtype == "float16" else "bfloat16"
    stated, before, asked = recipe.serve.vllm, shape.quantized, recipe.convert.quantization
    narrow = asked == "fp8_kv" or str(stated.get("kv_cache_dtype", "")).startswith("fp8")
    return Terms(
        dtype=dtype,
        quantization=(before and before.like) or _WHILE_LOADING.get(str(stated.get("quantization", asked)), "none"),
        group=(before and before.group) or 64,
        tp=recipe.convert.tp,
        pp=recipe.convert.pp,
        split_embedding=True,
        cache_width=1 if narrow else WIDTHS[dtype],
        windowed=stated.get("disable_hybrid_kv_cache_manager") is not True,
        whole=True,
        seeing=True,
    )


_WHILE_LOADING = {"fp8": "fp8", "bitsandbytes": "int4_gptq", "int4_weight_only": "int4_gptq"}
"""What vLLM quantizes itself, and the layout of the same size: bitsandbytes has a scale for each 64 weights."""

# -- weights


class Part(StrEnum):
    """What a tensor is for; only the layers' matrices are quantized."""

    EMBEDDING = "embedding"
    HEAD = "output head"
    MATRIX = "matrices"
    ROUTER = "routers"
    SMALL = "norms and biases"
    OTHER = "encoders of images and sound"


_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|wpe|word_embeddings|tok_embeddings|embed_in|embed_positions|shared)\.")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
_OTHER = re.compile(r"(^|\.)(vision_\w+|visual|multi_modal_projector|mm_projector|audio_\w+)\.|inv_freq$|\.masked_bias$")
_ROUTER = re.compile(r"\.(gate|router)\.(\w+\.)?weight$|shared_expert_gate")
_INWARD = re.compile(r"\.(o_proj|down_proj|w2|dense|dense_4h_to_h|out_proj|c_proj|fc2|o|wo)\.\w+$")
"""Matrices whose columns (inputs) are shared out among tensor-parallel ranks; of the others it is the rows."""
_KEYS = re.compile(r"\.(k_proj|v_proj)\.\w+$")
_FUSED = re.compile(r"\.(qkv_proj|query_key_value|c_attn|Wqkv|qkv)\.\w+$")
_LAYER = re.compile(r"\.(?:layers|h|blocks?)\.(\d+)\.")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_NOT_WEIGHTS = re.compile(
    r"inv_freq$|\.masked_bias$|\.(scales|qzeros|g_idx|absmax|quant_map|weight_scale\w*|input_scale|quant_state\S*)$"
)
_PACKED = {"I32": 8, "U8": 2}
"""dtypes that hold several 4-bit weights in an element, as AWQ, GPTQ and bitsandbytes lay them."""


class Weights(Struct, frozen=True):
    """``kinds``: bytes over all ranks, by what they are and how they are stored. ``ranks``: bytes of each GPU."""

    parameters: int
    kinds: Mapping[str, int]
    ranks: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.ranks)

    @property
    def heaviest(self) -> int:
        return max(self.ranks)


def part(tensor: Tensor) -> Part:
    """What a tensor is for, by its name and shape."""
    for pattern, found in ((_OTHER, Part.OTHER), (_EMBEDDING, Part.EMBEDDING), (_HEAD, Part.HEAD), (_ROUTER, Part.ROUTER)):
        if pattern.search(tensor.name):
            return found
    return Part.MATRIX if len(tensor.shape) > 1 else Part.SMALL


def parameters(tensors: Sequence[Tensor]) -> int:
    """How many numbers were trained; packed weights count as what they hold."""
    counted = (each for each in tensors if not _NOT_WEIGHTS.search(each.name))
    return sum(each.elements * (_PACKED.get(each.dtype, 1) if len(each.shape) > 1 else 1) for each in counted)


def weights(tensors: Sequence[Tensor], shape: Shape, how: Terms) -> Weights:
    """The bytes of a converted checkpoint, and of its engine: trtllm-build adds next to nothing."""
    stages = [0] * how.pp
    kinds: Counter[str] = Counter()
    # Some checkpoints hold a tied head all the same.
    own = [tensor for tensor in tensors if not (shape.tied and part(tensor) is Part.HEAD)]
    if how.whole and any(tensor.dtype not in _FLOATS for tensor in own):
        how = replace(how, quantization="none")
    heads = False
    for tensor in own:
        kind = part(tensor)
        if not tensor.elements or (kind is Part.OTHER and (not how.seeing or _NOT_WEIGHTS.search(tensor.name))):
            continue
        heads = heads or kind is Part.HEAD
        size, stored = _rank_bytes(tensor, kind, shape, how)
        stages[_stage(tensor.name, kind, shape, how)] += size
        kinds[f"{_half(tensor.name, shape)}{kind}, {stored}"] += size * how.tp
    if not heads and (extra := _second_copy(shape, how)):
        stages[-1] += extra
        kinds[f"{Part.HEAD}, {how.dtype}"] += extra * how.tp
    return Weights(parameters(own), dict(kinds), tuple(size for size in stages for _ in range(how.tp)))


def _half(name: str, shape: Shape) -> str:
    """Which engine of an encoder-decoder a tensor goes into; empty where there is one engine."""
    half = name.removeprefix("model.").partition(".")[0]
    return f"{half}'s " if shape.encoder_layers and half in ("encoder", "decoder") else ""


def _second_copy(shape: Shape, how: Terms) -> int:
    """A tied embedding is kept once where the head on the same GPU has the same shape; otherwise the head is a copy."""
    if how.pp == 1 and (how.tp == 1 or how.split_embedding):
        return 0
    return -(-shape.vocabulary // how.tp) * shape.hidden * how.width


def _stage(name: str, kind: Part, shape: Shape, how: Terms) -> int:
    match = _LAYER.search(name)
    if match is None:
        return 0 if kind is Part.EMBEDDING else how.pp - 1
    layer = min(int(match[1]), shape.layers - 1)  # layers beyond guess ahead (DeepSeek's), and stand with the last
    return next(at for at, end in enumerate(stage_ends(shape.layers, how.pp)) if layer < end)


def stage_ends(layers: int, pp: int) -> list[int]:
    """Where each pipeline stage's layers end: as even as can be, the first ones taking what is left over."""
    even, more = divmod(layers, pp)
    return [even * (stage + 1) + min(stage + 1, more) for stage in range(pp)]


def _rank_bytes(tensor: Tensor, kind: Part, shape: Shape, how: Terms) -> tuple[int, str]:
    """One rank's bytes of a tensor, and how they are stored."""
    if kind is Part.EMBEDDING:
        return (-(-tensor.elements // how.tp) if how.split_embedding else tensor.elements) * how.width, how.dtype
    if kind is Part.HEAD:
        return -(-tensor.shape[0] // how.tp) * (tensor.elements // tensor.shape[0]) * how.width, how.dtype
    if kind is not Part.MATRIX:
        return tensor.elements * how.width, how.dtype
    rows, columns = _share(tensor, shape, how.tp)
    if tensor.dtype not in _FLOATS:  # quantized before forge saw it: kept as it is
        return -(-tensor.size // how.tp), tensor.dtype
    return _stored(rows, columns, how)


def _share(tensor: Tensor, shape: Shape, tp: int) -> tuple[int, int]:
    """Rows and columns of a matrix that one rank has; fewer key-value heads than ranks are repeated."""
    columns = tensor.shape[-1]
    rows = tensor.elements // columns
    if _INWARD.search(tensor.name):
        return rows, -(-columns // tp)
    own = -(-shape.kv_heads // tp) * shape.head_dim
    if _KEYS.search(tensor.name):
        return own, columns
    if _FUSED.search(tensor.name):
        queries = rows - 2 * shape.kv_heads * shape.head_dim
        return -(-queries // tp) + 2 * own, columns
    return -(-rows // tp), columns


def matrices_of_a_rank(tensors: Sequence[Tensor], shape: Shape, how: Terms) -> list[tuple[int, int]]:
    """Rows and columns that one rank of a stage has of each matrix of the layers."""
    held = (tensor for tensor in tensors if part(tensor) is Part.MATRIX and tensor.elements and tensor.dtype in _FLOATS)
    return [_share(tensor, shape, how.tp) for tensor in held]


def _stored(rows: int, columns: int, how: Terms) -> tuple[int, str]:
    """Bytes of a layer's matrix with what its quantization keeps beside it."""
    count, width = rows * columns, how.width
    stored = {
        # int8 and int4: a scale for each output
        **dict.fromkeys(("int8_weight_only", "int8_gptq"), (count + rows * width, "int8")),
        "int4_weight_only": (-(-count // 2) + rows * width, "int4"),
        # a scale for each group of inputs of each output, and one for each input
        **dict.fromkeys(
            ("int4_awq", "w4a8_awq", "int4_gptq"),
            (-(-count // 2) + rows * -(-columns // how.group) * width + columns * width, f"int4 groups of {how.group}"),
        ),
        "nvfp4": (-(-count // 2) + rows * -(-columns // 16), "nvfp4"),  # a scale of 8 bits for each 16 inputs of each output
        "fp8": (count + 8, "fp8"),  # a scale for the weights and one for what comes in
        "int8_sq": (count + 4 * rows, "int8"),
    }
    return stored.get(how.quantization, (count * width, how.dtype))
