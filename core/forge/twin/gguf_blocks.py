"""ggml's quantized blocks to float32; layouts and the order of operations are ggml's (ggml-quants in llama.cpp)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
LOW, FOUR = np.uint8(15), np.uint8(4)


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte ``at`` of each block, as a column."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """All low halves of a block, then all high ones."""
    return np.concatenate([packed & LOW, packed >> FOUR], axis=1)


def _fifth(blocks: Bytes, at: int) -> Bytes:
    """The 32 bits at ``at``, one per element, as 16 where set."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << FOUR


def _q4_0(b: Bytes) -> Floats:
    return _half(b, 0) * (_nibbles(b[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32)


def _q4_1(b: Bytes) -> Floats:
    return _half(b, 0) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b, 2)


def _q5_0(b: Bytes) -> Floats:
    return _half(b, 0) * ((_nibbles(b[:, 6:]) | _fifth(b, 2)).astype(np.int8) - np.int8(16)).astype(np.float32)


def _q5_1(b: Bytes) -> Floats:
    return _half(b, 0) * (_nibbles(b[:, 8:]) | _fifth(b, 4)).astype(np.float32) + _half(b, 2)


def _q8_0(b: Bytes) -> Floats:
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _scales(b: Bytes) -> tuple[Floats, Floats]:
    """Scale and minimum of eight sub-blocks of Q4_K and Q5_K: twice eight numbers of 6 bits in 12 bytes at 4."""
    low, middle, high = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scale = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    least = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=1)
    return _half(b, 0) * scale.astype(np.float32), _half(b, 2) * least.astype(np.float32)


def _sub_blocks(b: Bytes, quants: Bytes) -> Floats:
    scale, least = _scales(b)
    return (scale[:, :, None] * quants.reshape(-1, 8, 32).astype(np.float32) - least[:, :, None]).reshape(-1, 256)


def _pairs(packed: Bytes) -> Bytes:
    """Every 32 bytes hold 64 elements: their low halves, then their high ones."""
    rows = packed.reshape(len(packed), -1, 32)
    return np.stack([rows & LOW, rows >> FOUR], axis=2).reshape(len(packed), 256)


def _q4_k(b: Bytes) -> Floats:
    return _sub_blocks(b, _pairs(b[:, 16:]))


def _q5_k(b: Bytes) -> Floats:
    bits = b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None] & 1
    return _sub_blocks(b, _pairs(b[:, 48:]) | (bits << 4).reshape(-1, 256).astype(np.uint8))


def _q6_k(b: Bytes) -> Floats:
    low, high = b[:, :128].reshape(-1, 2, 2, 32), b[:, 128:192].reshape(-1, 2, 1, 32)
    four = np.concatenate([low & 15, low >> 4], axis=2)
    two = high >> np.array([0, 2, 4, 6], np.uint8)[None, None, :, None] & 3
    quants = (four | two << 4).astype(np.int8) - np.int8(32)
    scale: Floats = _half(b, 208) * np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32)
    made: Floats = scale[:, :, None] * quants.reshape(-1, 16, 16).astype(np.float32)
    return made.reshape(-1, 256)


def _f32(b: Bytes) -> Floats:
    return np.ascontiguousarray(b).view("<f4").astype(np.float32)


def _f16(b: Bytes) -> Floats:
    return np.ascontiguousarray(b).view("<f2").astype(np.float32)


def _bf16(b: Bytes) -> Floats:
    wide: NDArray[np.uint32] = np.ascontiguousarray(b).view("<u2").astype(np.uint32) << np.uint32(16)
    made: Floats = wide.view(np.float32)
    return made


READERS: dict[str, Callable[[Bytes], Floats]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}


def floats(kind: str, raw: Bytes, block: tuple[int, int]) -> Floats:
    """The elements of consecutive blocks, flat. ``block`` is elements and bytes of one block."""
    return READERS[kind](raw.reshape(-1, block[1])).reshape(-1)
