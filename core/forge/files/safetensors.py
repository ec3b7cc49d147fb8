"""What the header of a safetensors file says: every tensor's name, dtype and shape, and not one of its bytes.

Format: eight bytes of little-endian length, then JSON of that length. Source: safetensors' README.
"""

import json
import math
from collections.abc import Mapping
from typing import cast

from msgspec import Struct

BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I4": 4, "U4": 4}
"""safetensors' names of dtypes -> bits of an element; F4 has 4, all others have 8."""
PREFIX = 8
_DIMENSIONS = 64
"""Of one tensor at most, as numpy has it: to multiply a million of them takes minutes."""
LONGEST = 100_000_000
"""Bytes of JSON above which the format's own reader calls a header broken."""


class Tensor(Struct, frozen=True):
    """One tensor of a checkpoint; ``dtype`` as safetensors writes it, ``shape`` with rows (outputs) first."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether its numbers are not whole ones, nor packed into some."""
        return self.dtype.startswith(("F", "BF"))

    @property
    def size(self) -> int:
        """Bytes as stored."""
        bits = BITS.get(self.dtype) or (4 if self.dtype.startswith("F4") else 8)
        return -(-self.elements * bits // 8)


def length(prefix: bytes) -> int:
    """Bytes of JSON that follow a file's first eight; ValueError where they promise what no safetensors file has."""
    stated = int.from_bytes(prefix[:PREFIX], "little")
    if len(prefix) < PREFIX or not 2 <= stated <= LONGEST:
        raise ValueError("this is no safetensors file")
    return stated


def parse(text: bytes) -> tuple[Tensor, ...]:
    """The tensors of one header, in its order; ValueError where it is none."""
    try:
        entries = cast("Mapping[str, Mapping[str, object]]", json.loads(text))
        found = tuple(
            Tensor(name, str(entry["dtype"]), tuple(map(int, cast("list[int]", entry["shape"]))))
            for name, entry in entries.items()
            if name != "__metadata__"
        )
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError("the safetensors header cannot be read") from error
    if any(len(tensor.shape) > _DIMENSIONS for tensor in found):
        raise ValueError(f"the safetensors header states a tensor of more than {_DIMENSIONS} dimensions")
    if any(count < 0 for tensor in found for count in tensor.shape):
        raise ValueError("the safetensors header states a negative size")
    return found
