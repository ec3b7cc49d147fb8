"""Small random checkpoints, saved by transformers: the measure that the twin's decoder is held to."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

# Untyped, or typed only in part.
torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")
# Such small matrices are multiplied in less time than threads take to meet, and threads that wait for a busy processor spin.
torch.set_num_threads(1)

VOCABULARY = 199
_BASE: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
_SLIDES = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
# Family -> (transformers' class names' stem, what differs from the base).
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied, with biases, llama3 rope": (
        "Llama",
        {"rope_parameters": _LLAMA3, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama, linear rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {"head_dim": 12, "use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma", {}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": 8,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": ("Gemma3", {"sliding_window": 8, "layer_types": _SLIDES, "rope_parameters": _GEMMA3_ROPE}),
}


def make(family: str, folder: Path, **changes: Any) -> Any:
    """A random model of the family, saved into the folder; the model itself comes back."""
    stem, settings = FAMILIES[family]
    config_class = getattr(transformers, "Gemma3TextConfig" if stem == "Gemma3" else f"{stem}Config")
    torch.manual_seed(0)
    # Other ways of attention leave soft caps out in some of transformers' releases.
    config = config_class(**{**_BASE, **settings, **changes, "attn_implementation": "eager"})
    model = getattr(transformers, f"{stem}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            mean = 0.0 if stem.startswith("Gemma") or "bias" in name else 1.0
            torch.nn.init.normal_(parameter, mean=mean, std=0.3)
    model.save_pretrained(folder)
    return model


def phi3(folder: Path, limit: int, **changes: Any) -> Any:
    """A random Phi-3 that turns texts of more than ``limit`` tokens by long factors, far from its short ones."""
    torch.manual_seed(0)
    half = 8
    settings: dict[str, Any] = {"vocab_size": VOCABULARY, **changes}
    config = transformers.Phi3Config(
        **settings,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        original_max_position_embeddings=limit,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + 0.1 * index for index in range(half)],
            "long_factor": [4.0 + index for index in range(half)],
            "original_max_position_embeddings": limit,
        },
    )
    model = transformers.Phi3ForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def t5(folder: Path, **settings: Any) -> Any:
    """A random T5."""
    torch.manual_seed(0)
    base = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    marks = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "initializer_factor": 3.0}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**{**base, **marks, **settings})).eval()
    model.save_pretrained(folder)
    return model


def says(model: Any, prompt: list[int], count: int, **how: Any) -> list[int]:
    """What ``transformers.generate`` says after the prompt, without the prompt."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, **how)
    return cast("list[int]", out[0, len(prompt) :].tolist())
