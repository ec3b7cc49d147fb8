"""TensorRT-LLM's checkpoint as the stand-in writes and reads it: an honest config.json, and every rank's file.

``rank0.safetensors`` holds the model's own tensors in the wanted type, rounded where they are quantized, and the Hugging Face
config.json in its metadata; the files of the other ranks are markers. So what comes out of the build can be served by the twin.
"""

import json
from collections.abc import Mapping as Table
from dataclasses import dataclass, field, replace
from pathlib import Path

from tensorrt_llm._standin.grids import alter
from tensorrt_llm._standin.sources import Source
from tensorrt_llm._standin.tensors import DTYPES, Tensor, write
from tensorrt_llm.mapping import Mapping
from tensorrt_llm.models.modeling_utils import QuantConfig
from tensorrt_llm.version import __version__

ORIGIN = "huggingface_config"
"""Key of the metadata that keeps the original config.json."""


@dataclass(frozen=True)
class Pretrained:
    """A converted model before it is written. ``extra`` is what only one family or variant states."""

    source: Source
    architecture: str
    dtype: str
    mapping: Mapping
    quantization: QuantConfig
    extra: Table[str, object] = field(default_factory=dict[str, object])

    def to_dict(self) -> dict[str, object]:
        """The checkpoint's config.json."""
        source = self.source
        heads = source.number("num_attention_heads", "num_heads", "n_head")
        hidden = source.number("hidden_size", "d_model", "n_embd")
        text = source.text
        return {
            "architecture": self.architecture,
            "dtype": self.dtype,
            "logits_dtype": "float32",
            "num_hidden_layers": source.number("num_hidden_layers", "num_layers", "n_layer"),
            "num_attention_heads": heads,
            "num_key_value_heads": text.get("num_key_value_heads") or heads,
            "hidden_size": hidden,
            "head_size": text.get("head_dim") or hidden // heads,
            "intermediate_size": source.number("intermediate_size", "d_ff"),
            "vocab_size": source.number("vocab_size"),
            "max_position_embeddings": text.get("max_position_embeddings") or 512,
            "norm_epsilon": text.get("rms_norm_eps") or text.get("layer_norm_eps") or 1e-6,
            "rotary_base": text.get("rope_theta") or 10000.0,
            "hidden_act": text.get("hidden_activation") or text.get("hidden_act") or "silu",
            "position_embedding_type": "rope_gpt_neox",
            "mapping": self.mapping.to_dict(),
            "quantization": self.quantization.to_dict(),
            "producer": {"name": "forge's stand-in", "version": __version__},
            **self.extra,
        }


def describe(source: Source, dtype: str, mapping: Mapping, quantization: QuantConfig) -> Pretrained:
    """What ``source`` becomes; refused where heads or layers do not divide among the GPUs."""
    made = Pretrained(source, source.architecture, settle(dtype, source), mapping, quantization)
    heads = source.number("num_attention_heads", "num_heads", "n_head")
    layers = source.number("num_hidden_layers", "num_layers", "n_layer")
    if heads % mapping.tp_size:
        raise AssertionError(f"num_attention_heads ({heads}) must be divisible by tp_size ({mapping.tp_size})")
    if layers % mapping.pp_size:
        raise AssertionError(f"num_hidden_layers ({layers}) must be a multiple of pp_size ({mapping.pp_size})")
    return made


def settle(dtype: str, source: Source) -> str:
    """What ``auto`` means: the checkpoint's own type, and float16 where that is float32 or unknown."""
    if dtype != "auto":
        return dtype
    stated = str(source.config.get("torch_dtype") or source.config.get("dtype") or source.text.get("torch_dtype"))
    return stated if stated in DTYPES and stated != "float32" else "float16"


def save(made: Pretrained, into: Path | str, keep: Table[str, Tensor] | None = None) -> None:
    """Write config.json and a file for each rank; ``keep`` are the tensors to hold, all of the source's as a rule."""
    folder = Path(into)
    folder.mkdir(parents=True, exist_ok=True)
    origin = {ORIGIN: json.dumps(made.source.config)}
    tensors = made.source.tensors if keep is None else keep
    rounded = alter(made.quantization.quant_algo, made.quantization.group_size)
    write(folder / "rank0.safetensors", tensors, origin, made.dtype, rounded)
    for rank in range(1, made.mapping.world_size):
        write(folder / f"rank{rank}.safetensors", {}, {"rank": str(rank)}, made.dtype)
    (folder / "config.json").write_text(json.dumps(made.to_dict(), indent=4), encoding="utf-8")


def extended(made: Pretrained, architecture: str, extra: Table[str, object]) -> Pretrained:
    """``made`` as another architecture that says more."""
    return replace(made, architecture=architecture, extra={**made.extra, **extra})
