"""Tiny random checkpoints that are whole: config.json, safetensors, a tokenizer of bytes. Made in milliseconds, without torch.

The same seed gives the same bytes. What such a model says is noise, but the same noise in every runtime.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from forge.twin.loading import load

Weights = dict[str, NDArray[np.float32]]
LLAMA_SPECIALS = ("<unk>", "<s>", "</s>")
GEMMA_SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")

_GEMMA_GAIN = np.float32(12.0)
"""Embeddings that are the head too would repeat the last token for ever, if the layers did not drown it."""


@dataclass(frozen=True)
class Shape:
    """A decoder's size; the vocabulary is the tokenizer's."""

    hidden: int = 32
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    intermediate: int = 64
    positions: int = 512


def llama(folder: Path, shape: Shape = Shape(), seed: int = 0) -> Path:
    """A LlamaForCausalLM with a head of its own, in ``folder``, which is made."""
    vocabulary = _tokenizer(folder, LLAMA_SPECIALS, bos="<s>", eos="</s>")
    weights = _decoder(shape, vocabulary, np.random.default_rng(seed), norm=1.0)
    weights["lm_head.weight"] = _random(np.random.default_rng(seed + 1), vocabulary, shape.hidden)
    config = {
        **_config("LlamaForCausalLM", "llama", shape, vocabulary),
        "hidden_act": "silu",
        "bos_token_id": LLAMA_SPECIALS.index("<s>"),
        "eos_token_id": LLAMA_SPECIALS.index("</s>"),
        "tie_word_embeddings": False,
    }
    return _lay(folder, config, weights)


def gemma(folder: Path, shape: Shape = Shape(kv_heads=1), seed: int = 0) -> Path:
    """A GemmaForCausalLM: norms around zero, one head for keys and values, embeddings that are the head too."""
    vocabulary = _tokenizer(folder, GEMMA_SPECIALS, bos="<bos>", eos="<eos>", pad="<pad>")
    config = {
        **_config("GemmaForCausalLM", "gemma", shape, vocabulary),
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "bos_token_id": GEMMA_SPECIALS.index("<bos>"),
        "eos_token_id": GEMMA_SPECIALS.index("<eos>"),
        "pad_token_id": GEMMA_SPECIALS.index("<pad>"),
        "tie_word_embeddings": True,
    }
    weights = _decoder(shape, vocabulary, np.random.default_rng(seed), norm=0.0)
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] *= _GEMMA_GAIN
    return _lay(folder, config, weights)


def medusa_heads(folder: Path, heads: int = 4, shape: Shape = Shape(), seed: int = 0) -> Path:
    """What a Medusa checkpoint holds beside its base model: a config and the heads."""
    rng = np.random.default_rng(seed)
    weights = {f"{head}.0.linear.weight": _random(rng, shape.hidden, shape.hidden) for head in range(heads)}
    return _lay(folder, {"medusa_num_heads": heads, "medusa_num_layers": 1}, weights, "medusa_lm_head.safetensors")


def draft(folder: Path, shape: Shape = Shape(layers=1), seed: int = 0) -> Path:
    """What an EAGLE or ReDrafter checkpoint holds beside its base model: a config and one layer, no tokenizer."""
    weights = _layer(0, shape, np.random.default_rng(seed), norm=1.0)
    return _lay(folder, {"architectures": ["LlamaForCausalLM"], "hidden_size": shape.hidden}, weights)


def t5(folder: Path, shape: Shape = Shape(), seed: int = 0) -> Path:
    """A T5ForConditionalGeneration in name and outline: the tensors that a conversion tells apart, no more."""
    vocabulary = _tokenizer(folder, ("<pad>", "</s>", "<unk>"), bos="", eos="</s>", pad="<pad>")
    rng = np.random.default_rng(seed)
    weights = {"shared.weight": _random(rng, vocabulary, shape.hidden)}
    for half in ("encoder", "decoder"):
        for layer in range(shape.layers):
            name = f"{half}.block.{layer}.layer.0.SelfAttention.q.weight"
            weights[name] = _random(rng, shape.hidden, shape.hidden)
    config: dict[str, object] = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": shape.hidden,
        "d_kv": shape.head_dim,
        "d_ff": shape.intermediate,
        "num_heads": shape.heads,
        "num_layers": shape.layers,
        "num_decoder_layers": shape.layers,
        "vocab_size": vocabulary,
        "torch_dtype": "float32",
    }
    return _lay(folder, config, weights)


def greedy(model: Path, prompt: str, most: int) -> str:
    """What the checkpoint itself says, asked in this process."""
    decoder, tokenizer = load(model), tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    memory, said = decoder.start(), list[int]()
    logits = decoder.prompt(memory, np.array(tokenizer.encode(prompt).ids, np.int64))
    while len(said) < most:
        said.append(int(logits[0].argmax()))
        logits = decoder.step([memory], said[-1:])
    return tokenizer.decode(said)


def _config(architecture: str, model_type: str, shape: Shape, vocabulary: int) -> dict[str, object]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "torch_dtype": "float32",
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
    }


def _random(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    return rng.normal(0.0, columns**-0.5, (rows, columns)).astype(np.float32)


def _decoder(shape: Shape, vocabulary: int, rng: np.random.Generator, norm: float) -> Weights:
    weights = {"model.embed_tokens.weight": _random(rng, vocabulary, shape.hidden)}
    for layer in range(shape.layers):
        weights |= _layer(layer, shape, rng, norm)
    weights["model.norm.weight"] = np.full(shape.hidden, norm, np.float32)
    return weights


def _layer(layer: int, shape: Shape, rng: np.random.Generator, norm: float) -> Weights:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "self_attn.q_proj": (queries, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, queries),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }
    weights = {f"model.layers.{layer}.{name}.weight": _random(rng, *size) for name, size in sizes.items()}
    for name in ("input_layernorm", "post_attention_layernorm"):
        weights[f"model.layers.{layer}.{name}.weight"] = np.full(shape.hidden, norm, np.float32)
    return weights


def _tokenizer(folder: Path, specials: tuple[str, ...], bos: str, eos: str, pad: str = "") -> int:
    """Every byte is a token, behind the special ones; returns the size of the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*specials, *alphabet))}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(  # pyright: ignore[reportUnknownMemberType]
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in specials]
    )
    single, special = (f"{bos} $A", [(bos, vocabulary[bos])]) if bos else (f"$A {eos}", [(eos, vocabulary[eos])])
    made.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=special)
    made.save(str(folder / "tokenizer.json"))
    named = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:",
        **{name: token for name, token in named.items() if token},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return len(vocabulary)


def _lay(folder: Path, config: dict[str, object], weights: Weights, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(weights, folder / name, metadata={"format": "pt"})
    return folder
