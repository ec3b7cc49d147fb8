"""A random LoRA adapter over the stand-in's Llama, and what transformers says with it merged."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import numpy as arrays

import tiny_checkpoints
from fakes import LLAMA
from forge.fit.model_shape import Shape, read

MODULES = {
    "self_attn.q_proj": (32, 32),
    "self_attn.v_proj": (32, 16),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (32, 64),
    "mlp.down_proj": (64, 32),
}
"""What the adapters change -> its inputs and outputs."""


def adapter(folder: Path, rank: int, seed: int, **stated: object) -> Path:
    """A random adapter over both layers, as PEFT saves it."""
    generator = np.random.default_rng(seed)
    folder.mkdir()
    made: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    for layer in range(2):
        for name, (inputs, outputs) in MODULES.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            made[f"{stem}.lora_A.weight"] = generator.normal(0, 0.3, (rank, inputs)).astype(np.float32)
            made[f"{stem}.lora_B.weight"] = generator.normal(0, 0.3, (outputs, rank)).astype(np.float32)
    arrays.save_file(made, folder / "adapter_model.safetensors")  # pyright: ignore[reportUnknownMemberType]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": sorted(MODULES), **stated}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged(checkpoint: Path, adapter: Path, scale: float, *, half: bool) -> Any:
    """transformers' model of the checkpoint, in ``half`` of its digits, with the adapter merged into it as PEFT does."""
    transformers: Any = tiny_checkpoints.transformers
    torch: Any = tiny_checkpoints.torch
    model = transformers.AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.float32)
    held: dict[str, Any] = arrays.load_file(adapter / "adapter_model.safetensors") if scale else {}  # pyright: ignore[reportUnknownMemberType]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if half:
                parameter.copy_(parameter.half().float())
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{stem}.lora_A.weight" in held:
                a, b = (torch.from_numpy(held[f"{stem}.lora_{side}.weight"]) for side in "AB")
                parameter.add_((b * scale) @ a)
    return model


def says(checkpoint: Path, adapter: Path, scale: float, prompt: str, *, half: bool = False) -> str:
    """Twelve tokens after ``prompt``, the likeliest each, with the adapter at ``scale``; 0 is without it."""
    transformers: Any = tiny_checkpoints.transformers
    model = merged(checkpoint, adapter, scale, half=half)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(checkpoint))
    ids = tiny_checkpoints.says(model, tokenizer(prompt)["input_ids"], 12)
    return str(tokenizer.decode(ids, skip_special_tokens=True))


SHAPE = {"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2, "intermediate_size": 24}


def weights(**shapes: tuple[int, int]) -> bytes:
    """The header of a checkpoint with these weights in each of two layers, and nothing behind it."""
    header = {
        f"model.layers.{layer}.{name.replace('__', '.')}.weight": {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]}
        for layer in (0, 1)
        for name, shape in shapes.items()
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def shape() -> Shape:
    return read({**LLAMA, **SHAPE, "num_hidden_layers": 2})


def spoiled(files: dict[str, bytes], what: bytes, instead: bytes) -> dict[str, bytes]:
    """An adapter's files, with something else in the first place where ``what`` stands in its weights."""
    weights = files["adapter_model.safetensors"]
    return {**files, "adapter_model.safetensors": weights[:8] + weights[8:].replace(what, instead, 1)}
