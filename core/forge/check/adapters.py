"""Adapters that a server of TensorRT-LLM is told to load, as values."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

Row = tuple[int, int, int]
"""Module, layer and rank."""


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """``tasks`` by the names of its folders, which ought to be numbers: the rows of each; ``names`` are forge's own for them.
    ``broken`` says by folder why there are no rows."""

    tasks: Mapping[str, tuple[Row, ...]]
    names: Mapping[str, object]
    broken: Mapping[str, str]


def rows(datatype: str, shape: tuple[int, ...], raw: bytes) -> tuple[Row, ...]:
    """What an array of TensorRT-LLM's lora_config says; ValueError where it is none."""
    if datatype != "INT32" or not shape or shape[-1] not in (3, 4) or len(raw) % (4 * shape[-1]):
        raise ValueError("it is no table of modules, layers and ranks")
    values = struct.unpack(f"<{len(raw) // 4}i", raw)
    return tuple((values[at], values[at + 1], values[at + 2]) for at in range(0, len(values), shape[-1]))
