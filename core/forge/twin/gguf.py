"""Turn a GGUF file into a Hugging Face checkpoint: ``python3 -m twin.gguf FILE OUT``.

Runs in the serving environment on numpy and tokenizers alone. Tensors are written one after the other, in slices of
rows, so that a model larger than memory passes through.
"""

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .gguf_blocks import Bytes, floats
from .gguf_header import DAMAGE, GgufError, Header, Tensor, config, dtype, read_header
from .gguf_tokenizer import tokenizer

SLICE = 1 << 24  # elements of a tensor held as float32 at a time
FORMATS = {"F32": ("F32", 4), "F16": ("F16", 2), "BF16": ("BF16", 2)}
HALVES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA2_LAYER = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FREQUENCIES = "rope_freqs.weight"
NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<suffix>weight|bias)")


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor on its way: from where in the GGUF, to what name and format.

    ``heads`` above 0 says that rows are interleaved per head as llama.cpp's rotary wants them, and are to be put back;
    ``shift`` is added to every element (llama.cpp stores Gemma's norms with their 1 added).
    """

    name: str
    tensor: Tensor
    form: str
    heads: int = 0
    shift: float = 0.0

    @property
    def size(self) -> int:
        return math.prod(self.tensor.shape) * FORMATS[self.form][1]


def pieces(header: Header) -> list[Piece]:
    """Every tensor of the checkpoint in writing order; GgufError for one that no known model has."""
    half = HALVES[dtype(header)]
    layer_names = LAYER | (GEMMA2_LAYER if header.architecture == "gemma2" else {})
    q_heads = header.whole("attention.head_count")
    heads = {"attn_q": q_heads, "attn_k": header.whole("attention.head_count_kv", q_heads)}
    found: list[Piece] = []
    for name, tensor in header.tensors.items():
        if name == FREQUENCIES:
            continue
        parts = NAME.fullmatch(name)
        layer, part, suffix = (parts["layer"], parts["part"], parts["suffix"]) if parts else (None, "", "")
        inner = OUTER.get(part) if layer is None else layer_names.get(part)
        if inner is None:
            raise GgufError(f"tensor {name} is no part of a {header.architecture} model that forge knows")
        found.append(
            Piece(
                f"{inner}.{suffix}" if layer is None else f"model.layers.{layer}.{inner}.{suffix}",
                tensor,
                half if len(tensor.shape) > 1 else "F32",
                heads.get(part, 0) if header.architecture == "llama" else 0,
                -1.0 if header.architecture.startswith("gemma") and part.endswith("norm") else 0.0,
            )
        )
    _complete(found, header)
    # Wide formats first: safetensors wants every tensor aligned to its own element.
    return sorted(found, key=lambda piece: (-FORMATS[piece.form][1], piece.name))


def _complete(found: list[Piece], header: Header) -> None:
    names = {piece.name for piece in found}
    wanted = {"model.embed_tokens.weight", "model.norm.weight"}
    for layer in range(header.whole("block_count")):
        wanted |= {f"model.layers.{layer}.{inner}.weight" for inner in LAYER.values()}
    if missing := sorted(wanted - names):
        raise GgufError(f"{len(missing)} tensors are missing, {missing[0]} among them")


def slices(data: Bytes, piece: Piece) -> Iterator[NDArray[np.generic]]:
    """The tensor's elements in its format, some rows at a time; whole where rows change places."""
    tensor, (elements, width) = piece.tensor, piece.tensor.block
    row = tensor.shape[-1]
    rows = math.prod(tensor.shape) // row if row else 0
    step = rows if piece.heads else max(1, SLICE // max(row, 1))
    for first in range(0, rows, max(step, 1)):
        count = min(step, rows - first)
        start = tensor.start + first * row // elements * width
        raw = data[start : start + count * row // elements * width]
        if piece.form == tensor.kind and piece.form != "F32":
            made: NDArray[np.generic] = raw.view("<u2")  # a half kind stays as it is
        else:
            made = floats(tensor.kind, raw, tensor.block)
            if piece.shift:
                made = made + np.float32(piece.shift)
        yield _rows_back(made, tensor.shape[0], piece.heads) if piece.heads else made


def _rows_back(flat: NDArray[np.generic], rows: int, heads: int) -> NDArray[np.generic]:
    """llama.cpp keeps a head's rows as (pair, half), Hugging Face as (half, pair)."""
    return np.ascontiguousarray(flat.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2))


def write_weights(source: Path, todo: list[Piece], target: Path) -> None:
    """model.safetensors: the length of a JSON header, the header padded to eight bytes, the tensors without gaps."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for piece in todo:
        table[piece.name] = {
            "dtype": FORMATS[piece.form][0],
            "shape": list(piece.tensor.shape),
            "data_offsets": [at, at + piece.size],
        }
        at += piece.size
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    data = np.memmap(source, np.uint8, "r")
    with target.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for piece in todo:
            for part in slices(data, piece):
                file.write(part.data)


def llama3_scaling(source: Path, header: Header) -> Mapping[str, object] | None:
    """Llama 3.1's rotary scaling, which GGUF keeps as one factor per frequency; None where the file has none.

    The factors are recognised by computing them anew from the only settings that were published.
    """
    tensor = header.tensors.get(FREQUENCIES)
    if tensor is None:
        return None
    data = np.memmap(source, np.uint8, "r")
    stated = floats(tensor.kind, data[tensor.start : tensor.start + tensor.size], tensor.block)
    factor, low, high, before = round(float(stated.max()), 4), 1.0, 4.0, 8192
    wave = 2 * np.pi * header.number("rope.freq_base", 10000.0) ** (np.arange(len(stated)) / len(stated))
    smooth = np.clip((before / wave - low) / (high - low), 0, 1)
    if not np.allclose(stated, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        raise GgufError("the rotary factors (rope_freqs) are not those of Llama 3; they cannot be stated in config.json")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": before,
    }


def convert(source: Path, out: Path) -> None:
    """Write a checkpoint folder; GgufError says what in the file stands against it."""
    header = read_header(source)
    stated = config(header)
    if scaling := llama3_scaling(source, header):
        stated["rope_scaling"] = dict(scaling)
    todo = pieces(header)
    tokens = tokenizer(header)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "config.json", stated)
    tokens.model.save(str(out / "tokenizer.json"))
    _write(out / "tokenizer_config.json", tokens.settings)
    ends = [token for role in ("eos", "eot") if (token := header.token_id(role)) is not None]
    ids = {"bos_token_id": stated["bos_token_id"], "pad_token_id": stated["pad_token_id"]}
    distinct = list(dict.fromkeys(ends))
    end = distinct if len(distinct) > 1 else next(iter(ends), None)
    _write(out / "generation_config.json", {**ids, "eos_token_id": end})
    write_weights(source, todo, out / "model.safetensors")


def _write(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: list[str]) -> int:
    """Exit code 0, 1 with the reason on stderr, or 2 for wrong arguments."""
    if len(argv) != 2:
        sys.stderr.write("usage: python3 -m twin.gguf FILE OUT\n")
        return 2
    source, out = map(Path, argv)
    try:
        convert(source, out)
    except GgufError as error:
        sys.stderr.write(f"{source}: {error}\n")
        return 1
    except DAMAGE as error:
        sys.stderr.write(f"{source}: damaged: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.filename or source}: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
