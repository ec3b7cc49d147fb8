"""Which checkpoints the numpy decoder can speak for. Imports nothing: forge's planning asks it too."""

from collections.abc import Mapping

ARCHITECTURES = (
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",  # its text half
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)

ROTARIES = ("default", "linear", "llama3")
SILU = ("silu", "swish")
GELU = ("gelu_pytorch_tanh", "gelu_new")
"""The tanh form under both of its names; "gelu" is another function."""
KINDS = ("full_attention", "sliding_attention")


def architecture(config: Mapping[str, object]) -> str:
    """The first name under ``architectures`` in a config.json, or the empty string."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list | tuple) and names else ""  # pyright: ignore[reportUnknownArgumentType]


def knows(config: Mapping[str, object]) -> bool:
    """Whether the numpy decoder serves a checkpoint with this config.json; every other one needs transformers."""
    return not objection(config)


def objection(config: Mapping[str, object]) -> str:
    """What in a config.json the numpy decoder has no arithmetic for; empty when it knows it all."""
    name = architecture(config)
    if name not in ARCHITECTURES:
        return f"architecture {name or '(none)'}"
    if config.get("quantization_config"):
        return "quantized weights"
    return _unknown(section(config, "text_config") or config, name)


def _unknown(text: Mapping[str, object], name: str) -> str:
    for rotary in rotaries(text):
        kind = rotary.get("rope_type") or rotary.get("type") or "default"
        if kind not in ROTARIES:
            return f"rotary embedding of type {kind}"
        if (rotary.get("partial_rotary_factor") or 1) != 1:
            return "partial rotary embedding"
    found = activation(text, name)
    if found not in (*SILU, *GELU):
        return f"activation {found}"
    kinds = text.get("layer_types")
    listed: list[object] = [*kinds] if isinstance(kinds, list) else []  # pyright: ignore[reportUnknownVariableType]
    if odd := next((kind for kind in listed if kind not in KINDS), None):
        return f"layers of the kind {odd}"
    if name.startswith("Gemma3") and text.get("attn_logit_softcapping"):
        return "a soft cap on Gemma 3's attention, which transformers reads and does not apply"
    causal = not text.get("use_bidirectional_attention") and text.get("is_causal") is not False
    return "" if causal else "bidirectional attention"


def activation(text: Mapping[str, object], name: str) -> str:
    """The function of an architecture's feed-forward layers, as transformers reads a config.json: Gemma 2 and 3 by a key of
    their own, Gemma by either (where they disagree, by its version), the others by ``hidden_act``."""
    act, own = (str(text.get(key) or "") for key in ("hidden_act", "hidden_activation"))
    if not name.startswith("Gemma"):
        return act or "silu"
    if not name.startswith("GemmaFor"):
        return own or GELU[0]
    act = GELU[0] if act in ("", "gelu") else act  # the first releases said gelu and meant its tanh form
    return act if own in ("", act) else f"{act} (hidden_act) and {own} (hidden_activation)"


def section(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    """A nested object of a config.json; empty when it is absent or null."""
    value = config.get(key)
    if not isinstance(value, Mapping):
        return {}
    return {str(name): inner for name, inner in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def rotaries(text: Mapping[str, object]) -> tuple[Mapping[str, object], ...]:
    """Every rotary setting of a config: `rope_scaling` (v4), `rope_parameters` (v5), one or one for each kind of layer."""
    stated = section(text, "rope_parameters") or section(text, "rope_scaling")
    nested = tuple(section(stated, kind) for kind in ("full_attention", "sliding_attention") if section(stated, kind))
    return nested or ((stated,) if stated else ())
