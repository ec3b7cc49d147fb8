"""Small made-up checkpoints and GGUF files for tests."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import cast

CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": 4}).encode()
GGUF_TEXT, GGUF_ARRAY, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL = 8, 9, 4, 5, 6, 7


def safetensors(fill: int = 1, elements: int = 5000) -> bytes:
    """A whole safetensors file with one tensor."""
    head = json.dumps({"w": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}}).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + bytes([fill]) * (4 * elements)


def pointer(size: int) -> bytes:
    """What git leaves where git-lfs was not asked for the real file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {size}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> tuple[int, bytes]:
    match value:
        case bool():
            return GGUF_BOOL, struct.pack("<?", value)
        case int():
            return GGUF_U32, struct.pack("<I", value)
        case float():
            return GGUF_F32, struct.pack("<f", value)
        case str():
            return GGUF_TEXT, _text(value)
        case list():
            kinds = [_value(item) for item in cast("list[object]", value)]
            kind = kinds[0][0] if kinds else GGUF_U32
            return GGUF_ARRAY, struct.pack("<IQ", kind, len(kinds)) + b"".join(data for _, data in kinds)
        case _:
            raise TypeError(type(value))


def gguf(fields: Mapping[str, object], tensors: Mapping[str, tuple[int, Sequence[int], bytes]], version: int = 3) -> bytes:
    """A GGUF file; a tensor is ggml's number of its kind, its shape (rows first), and its bytes."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields))
    for key, value in fields.items():
        kind, data = _value(value)
        head += _text(key) + struct.pack("<I", kind) + data
    body = b""
    for name, (kind, shape, data) in tensors.items():
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(body))
        body += data + b"\0" * (-len(data) % 32)
    return head + b"\0" * (-len(head) % 32) + body


TINY_FIELDS: dict[str, object] = {
    "general.architecture": "llama",
    "llama.embedding_length": 4,
    "llama.attention.head_count": 2,
    "llama.feed_forward_length": 8,
    "llama.block_count": 1,
    "llama.context_length": 16,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
TINY = gguf(TINY_FIELDS, {"token_embd.weight": (0, (3, 4), bytes(48))})


TEXTS = b'{"text": "one"}\n{"text": "two"}\n'
