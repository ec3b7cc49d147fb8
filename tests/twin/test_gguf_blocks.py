"""ggml's quantized blocks, every element worked out on its own from the layouts in ggml-quants."""

import struct
from collections.abc import Callable

import numpy as np
import pytest

from forge.twin.gguf_blocks import floats
from forge.twin.gguf_header import KINDS


def half(block: bytes, at: int) -> np.float32:
    return np.float32(struct.unpack_from("<e", block, at)[0])


def nibble(packed: bytes, element: int, width: int) -> int:
    """Element of a run of ``width`` bytes that holds its first half in the low nibbles, its second in the high ones."""
    byte = packed[element % width]
    return byte >> 4 if element >= width else byte & 15


def six_bits(block: bytes, sub: int) -> tuple[int, int]:
    s = block[4:16]
    if sub < 4:
        return s[sub] & 63, s[sub + 4] & 63
    return (s[sub + 4] & 15) | (s[sub - 4] >> 6) << 4, (s[sub + 4] >> 4) | (s[sub] >> 6) << 4


def q4_0(b: bytes, i: int) -> np.float32:
    return half(b, 0) * np.float32(nibble(b[2:], i, 16) - 8)


def q4_1(b: bytes, i: int) -> np.float32:
    return half(b, 0) * np.float32(nibble(b[4:], i, 16)) + half(b, 2)


def q5_0(b: bytes, i: int) -> np.float32:
    high = int.from_bytes(b[2:6], "little") >> i & 1
    return half(b, 0) * np.float32((nibble(b[6:], i, 16) | high << 4) - 16)


def q5_1(b: bytes, i: int) -> np.float32:
    high = int.from_bytes(b[4:8], "little") >> i & 1
    return half(b, 0) * np.float32(nibble(b[8:], i, 16) | high << 4) + half(b, 2)


def q8_0(b: bytes, i: int) -> np.float32:
    return half(b, 0) * np.float32(struct.unpack_from("b", b, 2 + i)[0])


def k_quant(b: bytes, i: int, quant: int) -> np.float32:
    scale, least = six_bits(b, i // 32)
    return half(b, 0) * np.float32(scale) * np.float32(quant) - half(b, 2) * np.float32(least)


def q4_k(b: bytes, i: int) -> np.float32:
    return k_quant(b, i, nibble(b[16 + i // 64 * 32 :], i % 64, 32))


def q5_k(b: bytes, i: int) -> np.float32:
    high = b[16 + i % 32] >> (i // 32) & 1
    return k_quant(b, i, nibble(b[48 + i // 64 * 32 :], i % 64, 32) | high << 4)


def q6_k(b: bytes, i: int) -> np.float32:
    run, quarter, place = i // 128, i % 128 // 32, i % 32
    low = b[run * 64 + quarter % 2 * 32 + place] >> (4 if quarter >= 2 else 0) & 15
    high = b[128 + run * 32 + place] >> (2 * quarter) & 3
    scale = struct.unpack_from("b", b, 192 + i // 16)[0]
    return half(b, 208) * np.float32(scale) * np.float32((low | high << 4) - 32)


REFERENCES: dict[str, Callable[[bytes, int], np.float32]] = {
    "F32": lambda b, i: np.float32(struct.unpack("<f", b)[0]),
    "F16": lambda b, i: half(b, 0),
    "BF16": lambda b, i: np.float32(struct.unpack("<f", b"\0\0" + b)[0]),
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}


@pytest.mark.parametrize(("kind", "elements", "width"), KINDS.values())
def test_every_kind_of_block_reads_as_its_layout_says(kind: str, elements: int, width: int) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (3, width), dtype=np.uint8)
    raw &= 0xBF  # clears the exponents' top bits, so that every half is a finite number
    expected = [REFERENCES[kind](bytes(block), element) for block in raw for element in range(elements)]
    assert np.array_equal(floats(kind, raw.reshape(-1), (elements, width)), np.array(expected, np.float32))


def test_a_block_worked_out_by_hand() -> None:
    block = struct.pack("<e", 0.5) + bytes([0x21] + [0x88] * 15)
    assert floats("Q4_0", np.frombuffer(block, np.uint8), (32, 18)).tolist() == [
        -3.5,
        *[0.0] * 15,
        -3.0,
        *[0.0] * 15,
    ]
