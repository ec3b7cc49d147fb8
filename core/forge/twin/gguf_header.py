"""What a GGUF file says of itself, read without numpy and without its tensors.

Layout (version 2 and 3, little-endian): "GGUF", version, counts of tensors and of key-values, the key-values, the
tensors' names, shapes, kinds and offsets, padding to ``general.alignment``, the tensors. Source: ggml's docs/gguf.md.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

MAGIC = b"GGUF"
TEXT, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
KINDS = {  # ggml's number: name, elements in a block, bytes of a block
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
OTHERS = {9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 20: "IQ4_NL"}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
}


MOST_VALUES, MOST_ENTRIES = 1 << 24, 1 << 20
"""In a header's arrays all in all, and of its tensors or its fields: far more than any has, and not more than memory has."""
DAMAGE = (ArithmeticError, LookupError, ValueError)
"""What a damaged number of a header ends in where it is used: a division by 0, a token that is not there, a wrong shape."""


class GgufError(ValueError):
    """The file is no GGUF, is damaged, or holds what forge cannot convert; the text says which."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor's bytes stand in the file; ``shape`` in rows first, as Hugging Face counts."""

    shape: tuple[int, ...]
    kind: str
    start: int
    size: int
    block: tuple[int, int]
    """Elements and bytes of one block."""


@dataclass(frozen=True, slots=True)
class Header:
    """All that stands before the tensors."""

    fields: Mapping[str, object]
    tensors: Mapping[str, Tensor]

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    def text(self, key: str, default: str | None = None) -> str:
        return str(self._get(key, default))

    def number(self, key: str, default: float | None = None) -> float:
        """A number under the architecture's own prefix: ``rope.freq_base`` is ``llama.rope.freq_base``."""
        found = self._get(f"{self.architecture}.{key}", default)
        if not isinstance(found, int | float):
            raise GgufError(f"{key} should be one number, found {type(found).__name__}")
        return found

    def whole(self, key: str, default: int | None = None) -> int:
        return int(self.number(key, default))

    def items(self, key: str) -> list[object]:
        found = self._get(key, None)
        if not isinstance(found, list):
            raise GgufError(f"{key} should be a list")
        return cast("list[object]", found)

    def token_id(self, role: str) -> int | None:
        found = self.fields.get(f"tokenizer.ggml.{role}_token_id")
        return found if isinstance(found, int) else None

    def _get(self, key: str, default: object) -> object:
        found = self.fields.get(key, default)
        if found is None:
            raise GgufError(f"the header has no {key}")
        return found


def read_header(path: Path) -> Header:
    """Parse and check a header; GgufError when any of it, or of the tensors it promises, is not in the file."""
    size = path.stat().st_size
    if size < 24:
        raise GgufError(f"{path.name} is no GGUF file: it has {size} bytes")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(data).header()
        except struct.error:
            raise GgufError(f"{path.name} is truncated: it ends at {size:,} bytes, inside the header") from None


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0
        self._values = 0

    def header(self) -> Header:
        if self._data[:4] != MAGIC:
            raise GgufError(f"no GGUF file: it begins with {self._data[:4]!r}")
        self._at = 4
        (version,) = cast("tuple[int]", self._take("I"))
        if version not in (2, 3):
            swapped = version & 0xFFFF == 0
            raise GgufError("a big-endian GGUF file" if swapped else f"GGUF version {version}; 2 and 3 are understood")
        tensors, pairs = cast("tuple[int, int]", self._take("QQ"))
        if max(tensors, pairs) > MOST_ENTRIES:
            raise GgufError(f"damaged header: {tensors:,} tensors and {pairs:,} fields")
        fields: dict[str, object] = {}
        for _ in range(pairs):
            key = self._text()
            fields[key] = self._value(cast("int", self._take("I")[0]))
        stated = [self._tensor() for _ in range(tensors)]
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise GgufError(f"general.alignment is {alignment!r}")
        base = -(-self._at // alignment) * alignment
        return Header(fields, dict(self._placed(stated, base)))

    def _take(self, layout: str) -> tuple[object, ...]:
        found = struct.unpack_from("<" + layout, self._data, self._at)
        self._at += struct.calcsize("<" + layout)
        return found

    def _text(self) -> str:
        (length,) = cast("tuple[int]", self._take("Q"))
        if length > len(self._data) - self._at:
            raise struct.error
        self._at += length
        return self._data[self._at - length : self._at].decode("utf-8", "replace")

    def _value(self, kind: int) -> object:
        if kind == TEXT:
            return self._text()
        if kind != ARRAY:
            return self._take(_scalar(kind))[0]
        inner, length = cast("tuple[int, int]", self._take("IQ"))
        if length > len(self._data) - self._at:  # every element takes a byte at least
            raise struct.error
        self._values += length
        if inner == ARRAY or self._values > MOST_VALUES:  # ggml's own reader knows no arrays of arrays either
            raise GgufError(f"damaged header: an array of {f'{length:,} values' if inner != ARRAY else 'arrays'}")
        if inner == TEXT:
            return [self._text() for _ in range(length)]
        return list(self._take(f"{length}{_scalar(inner)}"))

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text()
        (dimensions,) = cast("tuple[int]", self._take("I"))
        if dimensions > 4:
            raise GgufError(f"damaged header: tensor {name!r} has {dimensions} dimensions")
        shape = cast("tuple[int, ...]", self._take(f"{dimensions}Q"))
        kind, offset = cast("tuple[int, int]", self._take("IQ"))
        return name, shape[::-1], kind, offset

    def _placed(self, stated: Sequence[tuple[str, tuple[int, ...], int, int]], base: int) -> Iterator[tuple[str, Tensor]]:
        for name, shape, number, offset in stated:
            if number not in KINDS:
                known = ", ".join(kind for kind, _, _ in KINDS.values())
                found = OTHERS.get(number, f"kind {number}")
                raise GgufError(f"tensor {name} is quantized as {found}; forge reads {known}")
            kind, elements, width = KINDS[number]
            if shape and shape[-1] % elements:
                raise GgufError(f"damaged header: rows of {name} are no multiple of {elements}")
            size = math.prod(shape) // elements * width
            end = base + offset + size
            if end > len(self._data):
                raise GgufError(f"truncated: tensor {name} ends at byte {end:,}, the file has {len(self._data):,}")
            yield name, Tensor(shape, kind, base + offset, size, (elements, width))


def _scalar(kind: int) -> str:
    if kind not in SCALARS:
        raise GgufError(f"damaged header: a value of kind {kind}")
    return SCALARS[kind]


def dtype(header: Header) -> str:
    """The checkpoint's dtype: a half kind where all matrices have it, float32 for quantized and mixed ones."""
    kinds = {tensor.kind for tensor in header.tensors.values() if len(tensor.shape) > 1}
    return {frozenset({"F16"}): "float16", frozenset({"BF16"}): "bfloat16"}.get(frozenset(kinds), "float32")


def config(header: Header) -> dict[str, object]:
    """config.json as transformers 4 writes it (its version 5 says rope_theta where version 4 does not look)."""
    architecture = header.architecture
    if architecture not in ARCHITECTURES:
        raise GgufError(f"architecture {architecture!r} cannot be converted; known are {', '.join(ARCHITECTURES)}")
    if header.whole("expert_count", 0):
        raise GgufError("a mixture of experts cannot be converted")
    heads, hidden = header.whole("attention.head_count"), header.whole("embedding_length")
    width = header.whole("attention.key_length", hidden // max(heads, 1))
    ids = {f"{role}_token_id": header.token_id(role) for role in ("bos", "eos")}
    padding = header.token_id("padding")
    return {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        **ids,
        "pad_token_id": padding if padding is not None else ids["eos_token_id"],
        "hidden_size": hidden,
        "intermediate_size": header.whole("feed_forward_length"),
        "num_hidden_layers": header.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.whole("attention.head_count_kv", heads),
        "head_dim": width,
        "max_position_embeddings": header.whole("context_length"),
        "rms_norm_eps": header.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": header.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": dtype(header),
        "use_cache": True,
        "vocab_size": header.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in header.tensors else 0,
        **_own(header, width),
    }


def _own(header: Header, width: int) -> dict[str, object]:
    """What only this architecture's config states."""
    scaling = _linear(header)
    match header.architecture:
        case "llama":
            biased = "blk.0.attn_q.bias" in header.tensors
            return {"hidden_act": "silu", "attention_bias": biased, "mlp_bias": False, "rope_scaling": scaling}
        case "qwen2":
            return {"hidden_act": "silu", "rope_scaling": scaling, "use_sliding_window": False}
        case "gemma":
            return {
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh",
                "attention_bias": False,
            }
        case _:
            # Gemma 2's 27B, told by its 46 layers, scales queries by a head's mean width; the others by the real one.
            layers, heads = header.whole("block_count"), header.whole("attention.head_count")
            return {
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh",
                "attention_bias": False,
                "query_pre_attn_scalar": header.whole("embedding_length") // heads if layers == 46 else width,
                "attn_logit_softcapping": header.number("attn_logit_softcapping", 50.0),
                "final_logit_softcapping": header.number("final_logit_softcapping", 30.0),
                "sliding_window": header.whole("attention.sliding_window", 4096),
            }


def _linear(header: Header) -> dict[str, object] | None:
    kind = header.text(f"{header.architecture}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise GgufError(f"rotary scaling {kind!r} cannot be converted; none, linear and Llama 3's are understood")
    return {"type": "linear", "rope_type": "linear", "factor": header.number("rope.scaling.factor")}
