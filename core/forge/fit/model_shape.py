"""What a config.json says of a decoder's size: its layers, what each keeps of a token, and the tensors that it must have.

Every family spells its numbers in its own way, and leaves out what its class in transformers takes for granted.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import cast

from msgspec import Struct

from forge.files import texts
from forge.files.safetensors import Tensor
from forge.schema.config_json import LENGTHS, Quantized, quantized

_LAYERS = 10_000
"""More than any model has: what states more would take memory and time for each of them."""
KEEPING = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers that keep keys and values; a linear or recurrent one keeps a state of fixed size."""


class Pattern(Struct, frozen=True, forbid_unknown_fields=True):
    """What is a family's own about its layers."""

    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    head_norms: bool = False
    """A norm over each head's queries and keys."""
    biased: bool = False
    """Queries, keys and values have a bias whatever config.json says."""
    fused: bool = False
    """One matrix for queries, keys and values, and one for gate and up."""


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    """shapes.toml: what architectures call their numbers, leave out, and have of their own."""

    names: dict[str, tuple[str, ...]]
    silent: dict[str, dict[str, int | bool]]
    patterns: dict[str, Pattern]


@cache
def _table() -> _Table:
    return texts.shipped("forge.fit", "shapes.toml", _Table)


class Shape(Struct, frozen=True):
    """A decoder's size. Counts in elements, ``windows`` in tokens."""

    kind: str
    """``model_type`` of config.json."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int
    tied: bool
    windows: tuple[tuple[int, int], ...]
    """(layer, how many tokens it looks back on; 0: all) of each layer that keeps a cache of its own."""
    latent: int = 0
    """Elements that a token leaves in a layer with latent attention (DeepSeek), instead of its keys and values."""
    experts: int = 0
    used_experts: int = 0
    dtype: str = ""
    encoder_layers: int = 0
    """Layers of an encoder before the decoder; what the decoder keeps of its text is a cache of its own."""
    quantized: Quantized | None = None
    """How its weights were quantized before, where they were."""
    image: str = ""
    """What an image takes of a prompt, as a person reads it; empty where that is not known."""

    @property
    def kept(self) -> int:
        """Elements that a token leaves behind in one layer's cache."""
        return self.latent or 2 * self.kv_heads * self.head_dim

    @property
    def busy(self) -> int:
        """Width of the widest activation inside a layer, for one token: its experts' together where there are some."""
        return self.intermediate * max(self.used_experts, 1)

    @property
    def slides(self) -> bool:
        return any(window for _, window in self.windows)


class UnknownShapeError(ValueError):
    """config.json does not say what is needed; the text names the key."""


def read(config: Mapping[str, object]) -> Shape:
    """The shape of a checkpoint with this config.json."""
    inner = _text(config)
    kind = str(inner.get("model_type") or config.get("model_type") or "")
    said = {**_table().silent.get(kind, {}), **inner}
    hidden, heads, layers = _need(said, "hidden"), _need(said, "heads"), _need(said, "layers")
    encoder = layers if said.get("is_encoder_decoder") is True else 0
    layers = (_whole(said, "num_decoder_layers") or layers) if encoder else layers
    if not 0 < max(layers, encoder) <= _LAYERS:
        raise UnknownShapeError(f"config.json says that there are {max(layers, encoder)} layers, and cannot mean it")
    experts = _count(said, "experts")
    intermediate = _count(said, "intermediate") or 4 * hidden
    return Shape(
        kind=kind,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(said, heads),
        head_dim=_count(said, "head_dim") or hidden // heads,
        intermediate=(_count(said, "expert_size") or intermediate) if experts else intermediate,
        vocabulary=_need(said, "vocabulary"),
        positions=_count(said, "positions"),
        tied=said.get("tie_word_embeddings", config.get("tie_word_embeddings")) is True,
        windows=_windows(said, kind, layers),
        latent=_whole(said, "kv_lora_rank") and _whole(said, "kv_lora_rank") + _whole(said, "qk_rope_head_dim"),
        experts=experts,
        used_experts=_count(said, "used_experts") if experts else 0,
        dtype=str(inner.get("torch_dtype") or inner.get("dtype") or config.get("torch_dtype") or config.get("dtype") or ""),
        encoder_layers=encoder,
        quantized=quantized(config),
        image=_image(config),
    )


def _image(config: Mapping[str, object]) -> str:
    """What an image takes of a prompt; empty for a model that sees none, and for one that forge cannot count.

    Sources: transformers' processors of LLaVA and Qwen2-VL.
    """
    told = config.get("vision_config")
    seen = cast("Mapping[str, object]", told if isinstance(told, dict) else {})
    match config.get("model_type"):
        case "llava" if seen.get("model_type") == "clip_vision_model":
            size, patch = _whole(seen, "image_size"), _whole(seen, "patch_size")
            first = 1 if config.get("vision_feature_select_strategy") == "full" else 0
            return f"{(size // patch) ** 2 + first:,} tokens" if size and patch else ""
        case "qwen2_vl" | "qwen2_5_vl" if seen:
            side = (_whole(seen, "patch_size") or 14) * (_whole(seen, "spatial_merge_size") or 2)
            return f"a token for each {side} x {side} pixels"
        case _:
            return ""


def _text(config: Mapping[str, object]) -> Mapping[str, object]:
    """The part about the language model, where there are other models beside it."""
    nested = config.get("text_config")
    return cast("Mapping[str, object]", nested) if isinstance(nested, dict) else config


def _whole(said: Mapping[str, object], key: str) -> int:
    value = said.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _names(what: str) -> tuple[str, ...]:
    return LENGTHS if what == "positions" else _table().names[what]


def _count(said: Mapping[str, object], what: str) -> int:
    """The first spelling of ``what`` that has a number; 0 without one."""
    return next((value for name in _names(what) if (value := _whole(said, name))), 0)


def _need(said: Mapping[str, object], what: str) -> int:
    if found := _count(said, what):
        return found
    raise UnknownShapeError(f"config.json does not say {_names(what)[0]}")


def _kv_heads(said: Mapping[str, object], heads: int) -> int:
    # Falcon's older layout and GPT-BigCode have one key-value head where they say multi_query.
    if said.get("multi_query") is True and said.get("new_decoder_architecture") is not True:
        return 1
    return _count(said, "kv_heads") or heads


def _windows(said: Mapping[str, object], kind: str, layers: int) -> tuple[tuple[int, int], ...]:
    window = _whole(said, "sliding_window") if said.get("use_sliding_window") is not False else 0
    stated = said.get("layer_types")
    kinds = [str(each) for each in cast("list[object]", stated)] if isinstance(stated, list) else []
    own = layers - _whole(said, "num_kv_shared_layers")  # the last layers look into the caches of earlier ones (Gemma 3n)
    if said.get("use_cla") is True:  # each group of so many layers shares the first one's cache (Hunyuan)
        factor = max(_whole(said, "cla_share_factor"), 1)
        return tuple((layer, window) for layer in range(0, layers, factor))
    return tuple(
        (layer, window if window and _slides(said, kind, kinds, layer) else 0)
        for layer in range(own)
        if not kinds or kinds[layer] in KEEPING
    )


def _slides(said: Mapping[str, object], kind: str, kinds: list[str], layer: int) -> bool:
    if kinds:
        return kinds[layer] != "full_attention"
    if kind == "gemma2":
        return layer % 2 == 0
    pattern = _whole(said, "sliding_window_pattern") or _whole(said, "_sliding_window_pattern")
    if pattern or kind in {"gemma3", "gemma3_text"}:
        return (layer + 1) % (pattern or 6) != 0
    if "max_window_layers" in said:
        return layer >= _whole(said, "max_window_layers")
    return True


# -- the tensors that a checkpoint of a known kind has


def tensors(config: Mapping[str, object]) -> tuple[Tensor, ...]:
    """The tensors of a checkpoint with this config.json, as transformers saves them; empty for a kind that is not known."""
    shape = read(config)
    kind = {"float32": "F32", "float16": "F16"}.get(shape.dtype, "BF16")
    if shape.kind in ENCODER_DECODER:
        return tuple(Tensor(name, kind, size) for name, size in _halves(config, shape))
    pattern = _table().patterns.get(shape.kind)
    if pattern is None:
        return ()
    return tuple(Tensor(name, kind, size) for name, size in _all(_text(config), shape, pattern))


ENCODER_DECODER = frozenset({"t5", "mt5"})

Sized = Iterator[tuple[str, tuple[int, ...]]]


def _all(config: Mapping[str, object], shape: Shape, pattern: Pattern) -> Sized:
    yield "model.embed_tokens.weight", (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        for name, size in (*_attention(config, shape, pattern), *_feed_forward(config, shape, pattern)):
            yield at + name, size
        for norm in pattern.norms:
            yield f"{at}{norm}.weight", (shape.hidden,)
    yield "model.norm.weight", (shape.hidden,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocabulary, shape.hidden)


def _attention(config: Mapping[str, object], shape: Shape, pattern: Pattern) -> Sized:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    rows = {"qkv_proj": queries + 2 * keys} if pattern.fused else {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    everywhere = config.get("attention_bias") is True
    for name, count in rows.items():
        yield f"self_attn.{name}.weight", (count, shape.hidden)
        if pattern.biased or everywhere:
            yield f"self_attn.{name}.bias", (count,)
    yield "self_attn.o_proj.weight", (shape.hidden, queries)
    if everywhere:
        yield "self_attn.o_proj.bias", (shape.hidden,)
    if pattern.head_norms:
        yield "self_attn.q_norm.weight", (shape.head_dim,)
        yield "self_attn.k_norm.weight", (shape.head_dim,)


def _feed_forward(config: Mapping[str, object], shape: Shape, pattern: Pattern) -> Sized:
    up, down = (shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate)
    if shape.experts:
        yield "block_sparse_moe.gate.weight", (shape.experts, shape.hidden)
        for expert in range(shape.experts):
            for name, size in (("w1", up), ("w2", down), ("w3", up)):
                yield f"block_sparse_moe.experts.{expert}.{name}.weight", size
        return
    if pattern.fused:
        yield "mlp.gate_up_proj.weight", (2 * shape.intermediate, shape.hidden)
        yield "mlp.down_proj.weight", down
        return
    for name, size in (("gate_proj", up), ("up_proj", up), ("down_proj", down)):
        yield f"mlp.{name}.weight", size
        if config.get("mlp_bias") is True:
            yield f"mlp.{name}.bias", size[:1]


def _halves(config: Mapping[str, object], shape: Shape) -> Sized:
    """T5's: an encoder and a decoder that share the embedding, each with a table of relative positions in its first layer."""
    inner = shape.heads * shape.head_dim
    gated = str(config.get("feed_forward_proj", "")).startswith("gated")
    ups = ("wi_0", "wi_1") if gated else ("wi",)
    yield "shared.embed_tokens.weight", (shape.vocabulary, shape.hidden)
    for half, layers in (("encoder", shape.encoder_layers), ("decoder", shape.layers)):
        kinds = ("SelfAttention",) if half == "encoder" else ("SelfAttention", "EncDecAttention")
        for layer in range(layers):
            at = f"{half}.block.{layer}.layer."
            for number, kind in enumerate(kinds):
                for name in ("q", "k", "v"):
                    yield f"{at}{number}.{kind}.{name}.weight", (inner, shape.hidden)
                yield f"{at}{number}.{kind}.o.weight", (shape.hidden, inner)
                yield f"{at}{number}.layer_norm.weight", (shape.hidden,)
            for name in ups:
                yield f"{at}{len(kinds)}.DenseReluDense.{name}.weight", (shape.intermediate, shape.hidden)
            yield f"{at}{len(kinds)}.DenseReluDense.wo.weight", (shape.hidden, shape.intermediate)
            yield f"{at}{len(kinds)}.layer_norm.weight", (shape.hidden,)
        buckets = _whole(config, "relative_attention_num_buckets") or 32
        yield f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (buckets, shape.heads)
        yield f"{half}.final_layer_norm.weight", (shape.hidden,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocabulary, shape.hidden)
