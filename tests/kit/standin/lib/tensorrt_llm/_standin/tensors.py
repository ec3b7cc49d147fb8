"""Reads and writes safetensors, tensor by tensor, so that a checkpoint need not fit into memory.

A file is eight bytes of header length, a JSON header (name -> dtype, shape, byte range; ``__metadata__`` -> texts), the bytes.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_POINTER = b"version https://git-lfs.github.com/spec/v1"


class CheckpointError(OSError):
    """Weights that are not there, not whole, or no weights."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor's bytes lie, and what they mean. ``kind`` is safetensors' name of the type."""

    file: Path
    start: int
    size: int
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file says of itself."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read(file: Path) -> TensorFile:
    """The header of a file, checked against the file's length."""
    with file.open("rb") as opened:
        prefix = opened.read(len(_POINTER))
        if prefix == _POINTER:
            raise CheckpointError(f"{file} is a git-lfs pointer, not weights; fetch them with `git lfs pull`")
        length = int.from_bytes(prefix[:8], "little")
        if not 2 <= length <= file.stat().st_size:
            raise CheckpointError(f"Error while deserializing header: {file} is no safetensors file")
        opened.seek(8)
        header = cast("dict[str, dict[str, object]]", json.loads(opened.read(length)))
    metadata = cast("dict[str, str]", header.pop("__metadata__", {}))
    found = {name: _tensor(file, 8 + length, entry) for name, entry in header.items()}
    end = max((each.start + each.size for each in found.values()), default=8 + length)
    if end != file.stat().st_size:
        raise CheckpointError(f"Error while deserializing header: {file} should have {end} bytes: it is incomplete")
    return TensorFile(found, metadata)


def _tensor(file: Path, base: int, entry: Mapping[str, object]) -> Tensor:
    begin, end = cast("tuple[int, int]", entry["data_offsets"])
    shape = tuple(cast("list[int]", entry["shape"]))
    return Tensor(file, base + begin, end - begin, cast("str", entry["dtype"]), shape)


Alter = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]
"""A tensor's name and numbers -> the numbers to write."""


def _same(_: str, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    return numbers


def write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: str, alter: Alter = _same) -> None:
    """Write ``tensors`` with their floating-point numbers altered, and as ``dtype`` (float32, float16 or bfloat16)."""
    kind = DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    for name, each in tensors.items():
        goal = kind if each.kind in _WIDTHS else each.kind
        size = each.size // _WIDTHS[each.kind] * _WIDTHS[kind] if each.kind in _WIDTHS else each.size
        header[name] = {"dtype": goal, "shape": list(each.shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name, each in tensors.items():
            opened.write(_bytes(name, each, kind, alter))


def _bytes(name: str, tensor: Tensor, kind: str, alter: Alter) -> bytes:
    with tensor.file.open("rb") as source:
        source.seek(tensor.start)
        raw = source.read(tensor.size)
    if tensor.kind not in _WIDTHS:
        return raw
    have = _numbers(raw, tensor.kind).reshape(tensor.shape)
    changed = alter(name, have)
    return raw if changed is have and tensor.kind == kind else _cast(changed.reshape(-1), kind)


def _numbers(raw: bytes, have: str) -> NDArray[np.float32]:
    if have == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
    return np.frombuffer(raw, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[have]).astype("<f4")


def _cast(numbers: NDArray[np.float32], want: str) -> bytes:
    if want == "BF16":  # to the nearest, ties to even
        bits = numbers.view("<u4").astype("<u8")
        rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
        return bytes(rounded.astype("<u2").data)
    return bytes(numbers.astype({"F32": "<f4", "F16": "<f2"}[want]).data)
