"""Reads a Hugging Face checkpoint: config.json and safetensors, by mmap.

A safetensors file is eight bytes of little-endian header length, a JSON header that names each tensor's type, shape and byte
range behind the header, and the bytes. float32 tensors are views of the mapping, so two servers of one model share its pages.
"""

import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np

from .arrays import Array, Floats
from .faults import CheckpointFault

_TYPES: dict[str, np.dtype[np.generic]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_PREFIX_BYTES = 8
_LARGEST = 256 << 20
"""Bytes above which a JSON file is not read."""


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file; CheckpointFault says which file is missing or is none."""
    if not path.is_file():  # a pipe would be waited for
        raise CheckpointFault(f"{path} is {'no file' if path.exists() else 'missing'}")
    if path.stat().st_size > _LARGEST:
        raise CheckpointFault(f"{path} has more than {_LARGEST:,} bytes")
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointFault(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointFault(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointFault(f"{path} holds no JSON object")
    return cast("dict[str, object]", found)


class Weights(Mapping[str, Floats]):
    """The tensors of a checkpoint folder by name, each as float32; half-width ones are widened when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._tensors: dict[str, Array] = {}
        for path in _shards(folder):
            self._tensors |= _tensors(path)

    def __getitem__(self, name: str) -> Floats:
        return widened(self._tensors[name])

    def stored(self, name: str) -> Array:
        """A tensor as the file has it; bfloat16 is uint16."""
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def widened(stored: Array) -> Floats:
    """Weights as float32, without rounding; float32 ones are not copied. uint16 is bfloat16."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32, copy=False)


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        placed = read_json(index).get("weight_map")
        if not isinstance(placed, dict):
            raise CheckpointFault(f"{index} has no weight_map")
        return [folder / name for name in sorted(set(cast("dict[str, str]", placed).values()))]
    return [folder / "model.safetensors"]


def _tensors(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise CheckpointFault(f"{path} is {'no file' if path.exists() else 'missing'}")
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointFault(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        raise CheckpointFault(f"{path} is empty") from None
    start = _PREFIX_BYTES + int.from_bytes(mapped[:_PREFIX_BYTES], "little")
    try:
        header = cast("dict[str, dict[str, object]]", json.loads(mapped[_PREFIX_BYTES:start]))
        return {name: _tensor(path, mapped, start, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointFault(f"{path} is not a safetensors file: {error}") from error


def _tensor(path: Path, mapped: mmap.mmap, start: int, entry: Mapping[str, object]) -> Array:
    kind = str(entry["dtype"])
    shape = cast("list[int]", entry["shape"])
    begin, end = cast("list[int]", entry["data_offsets"])
    if kind not in _TYPES:
        raise CheckpointFault(f"{path} holds {kind} weights; the twin reads {', '.join(_TYPES)}")
    if start + end > len(mapped):
        raise CheckpointFault(f"{path} is truncated: {start + end} bytes are promised, {len(mapped)} are there")
    dtype = _TYPES[kind]
    flat = np.frombuffer(mapped, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=start + begin)
    return flat.reshape(shape)
