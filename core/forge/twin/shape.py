"""What a config.json says of a decoder, with every family's habits resolved into numbers.

Both spellings are read: transformers 4's (`rope_theta`, `rope_scaling`) and transformers 5's (`rope_parameters`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from .architectures import GELU, activation, architecture, objection, section
from .faults import CheckpointFault

_LAYERS = 10_000  # more than any model has: what states more would take memory and time for each of them
_GEMMA3_PATTERN = 6  # five sliding layers, then a full one
# What a config.json may leave out because the class of that family says it.
_SILENT: Mapping[str, Mapping[str, object]] = {
    "Gemma": {"head_dim": 256},
    "Gemma2": {
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "Gemma3": {
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window": 4096,
    },
    "Mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "Qwen2": {"num_key_value_heads": 32, "sliding_window": 4096},
    "Qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
}
_NULLS = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "num_key_value_heads")
"""Keys whose explicit null is an answer where the family's silence would mean a number."""
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Rotary:
    """One set of rotary frequencies: base, and the scaling that stretches them."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: float = 8192.0


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer does its own way: how many keys it looks back on (0: all), and which rotary it turns by."""

    window: int
    rotary: Rotary


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's arithmetic. Sizes in elements; ``query_scale`` multiplies the scores; a cap of 0 means none."""

    prefix: str
    """Names of the checkpoint's tensors begin with one of these, separated by spaces."""
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    epsilon: float
    norm_offset: float
    tied: bool | None
    """None: whatever the checkpoint holds."""
    biased: tuple[str, ...]
    """Projections that have a bias."""
    heads_norm: bool
    """Queries and keys are normalised per head."""
    gelu: bool
    sandwich: bool
    embedding_scale: float
    query_scale: float
    score_cap: float
    logit_cap: float
    layers: tuple[Layer, ...]


def read_shape(config: Mapping[str, object]) -> Shape:
    """The shape of a checkpoint with this config.json; CheckpointFault when the numpy decoder does not know it."""
    problem = objection(config)
    if problem:
        raise CheckpointFault(f"the numpy decoder does not know {problem}")
    family = architecture(config).removesuffix("ForCausalLM").removesuffix("ForConditionalGeneration")
    nested = section(config, "text_config")
    stated = {**_SILENT.get(family, {}), **{key: value for key, value in (nested or config).items() if value is not None}}
    for key in _NULLS:
        if key in (nested or config) and (nested or config)[key] is None:
            stated.pop(key, None)
    # Of two halves the whole says whether they are tied.
    if nested:
        stated["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    return _shape(_Config(stated), family, activation(stated, architecture(config)))


_MOST = 2**40
"""Above every count of a model's parts."""


class _Config:
    """Typed looks into a config.json."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = values

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, int | float):
            raise CheckpointFault(f"config.json: {key} is {value!r}, a number is needed")
        return float(value)

    def count(self, key: str, default: int | None = None) -> int:
        """How many there are of something that has to be there."""
        value = self.number(key, default)
        if not 1 <= value < _MOST:
            raise CheckpointFault(f"config.json: {key} is {value:g}, and cannot be")
        return int(value)

    def switch(self, key: str) -> bool | None:
        value = self.values.get(key)
        return value if isinstance(value, bool) else None


def _shape(config: _Config, family: str, activation: str) -> Shape:
    gemma = family.startswith("Gemma")
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    head_dim = config.count("head_dim", hidden // heads)
    scored = config.number("query_pre_attn_scalar", head_dim) if family in {"Gemma2", "Gemma3"} else float(head_dim)
    caps = family in {"Gemma2", "Gemma3"}
    tied = config.switch("tie_word_embeddings")
    return Shape(
        prefix="language_model.model. model.language_model. model.",
        hidden=hidden,
        heads=heads,
        kv_heads=config.count("num_key_value_heads", heads),
        head_dim=head_dim,
        vocabulary=config.count("vocab_size"),
        positions=config.count("max_position_embeddings", 2048),
        epsilon=config.number("rms_norm_eps", 1e-6),
        norm_offset=1.0 if gemma else 0.0,
        tied=gemma if tied is None and gemma else tied,
        biased=_biased(config, family),
        heads_norm=family in {"Gemma3", "Qwen3"},
        gelu=activation in GELU,
        sandwich=family in {"Gemma2", "Gemma3"},
        embedding_scale=hidden**0.5 if gemma else 1.0,
        query_scale=scored**-0.5,
        score_cap=config.number("attn_logit_softcapping", 0.0) if caps else 0.0,
        logit_cap=config.number("final_logit_softcapping", 0.0) if caps else 0.0,
        layers=_layers(config, family),
    )


def _biased(config: _Config, family: str) -> tuple[str, ...]:
    if family == "Qwen2":
        return _ATTENTION[:3]
    if family == "Mistral":
        return ()
    attention = _ATTENTION if config.switch("attention_bias") else ()
    return (*attention, *_MLP) if family == "Llama" and config.switch("mlp_bias") else attention


def _layers(config: _Config, family: str) -> tuple[Layer, ...]:
    count = config.count("num_hidden_layers")
    if count > _LAYERS:
        raise CheckpointFault(f"config.json: num_hidden_layers is {count}; the twin knows of none with more than {_LAYERS}")
    window = int(config.number("sliding_window", 0))
    stated = config.values.get("layer_types")
    if isinstance(stated, list) and family not in {"Llama", "Mistral", "Gemma"}:
        sliding = [kind == "sliding_attention" for kind in cast("list[str]", stated)]
    else:
        sliding = [_slides(config, family, index) for index in range(count)]
    full, local = _rotary(config, "full_attention"), _rotary(config, "sliding_attention")
    if family == "Gemma3" and not section(section(config.values, "rope_parameters"), "sliding_attention"):
        local = Rotary(config.number("rope_local_base_freq"))
    return tuple(Layer(window, local) if slides else Layer(0, full) for slides in sliding)


def _slides(config: _Config, family: str, index: int) -> bool:
    """Whether a layer has a sliding window where config.json has no ``layer_types`` (transformers below 4.53)."""
    if family == "Mistral":
        return True
    if family == "Gemma2":
        return index % 2 == 0
    if family == "Gemma3":
        return bool((index + 1) % config.count("sliding_window_pattern", _GEMMA3_PATTERN))
    if family.startswith("Qwen"):
        return bool(config.switch("use_sliding_window")) and index >= config.number("max_window_layers", 28)
    return False


def _rotary(config: _Config, kind: str) -> Rotary:
    values = section(config.values, "rope_parameters") or section(config.values, "rope_scaling")
    found = _Config(section(values, kind) or values)
    theta = found.number("rope_theta", config.number("rope_theta", 10_000.0))
    scaling = str(found.values.get("rope_type") or found.values.get("type") or "default")
    plain = Rotary(theta, scaling, found.number("factor", 1.0))
    if scaling != "llama3":
        return plain
    return replace(
        plain,
        low=found.number("low_freq_factor"),
        high=found.number("high_freq_factor"),
        original=found.number("original_max_position_embeddings"),
    )
