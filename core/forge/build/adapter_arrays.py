"""LoRA adapters as TensorRT-LLM takes them: one row for each module of each layer, and a table that says which it is.

A row is A (r, inputs) and then B (outputs, r), both flattened, B with the adapter's scale in it; zeros fill it to the longest.
Sources: docs/source/advanced/lora.md and examples/hf_lora_convert.py of TensorRT-LLM; PEFT's tuners/lora for scales.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from forge.errors import StepError
from forge.files import safetensors, texts
from forge.schema.adapters import ARRAYS, CONFIG, WEIGHTS

Floats = NDArray[np.float32]
_TYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_PLACE = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.*\blayers\.(?P<layer>\d{1,9})\..*?(?P<leaf>\w+))\.lora_(?P<side>[AB])(\.\w+)?\.weight"
)
_LARGEST = float(np.finfo(np.float16).max)


class _Row(Struct):
    """The two matrices over one module."""

    module: str
    a: Floats | None = None
    b: Floats | None = None


def write(adapter: Path, modules: Mapping[str, int], out: Path) -> None:
    """Write ``ARRAYS`` of the adapter in ``adapter``; ``modules`` is what the checkpoint calls a module -> its number.

    StepError where it is no adapter over these modules, and where float16 cannot hold it.
    """
    config, broken = texts.document(adapter / CONFIG)
    if broken:
        raise StepError(f"{CONFIG} cannot be read: {broken}", where=str(adapter))
    rows = _rows(adapter / WEIGHTS, modules)
    flat: list[NDArray[np.float16]] = []
    table: list[tuple[int, int, int]] = []
    for (layer, number), row in sorted(rows.items()):
        a, b = row.a, row.b
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.size or not b.size:
            raise StepError(f"{row.module} has no pair of matrices of one rank", where=str(adapter))
        scaled = b * np.float32(_scale(config, row.module, a.shape[0], adapter))
        flat.append(_narrow(row.module, np.concatenate((a.reshape(-1), scaled.reshape(-1)))))
        table.append((number, layer, a.shape[0]))
    if not flat:
        raise StepError("the adapter changes nothing", where=str(adapter))
    weights = np.zeros((1, len(flat), max(map(len, flat))), np.float16)
    for at, values in enumerate(flat):
        weights[0, at, : len(values)] = values
    np.save(out / ARRAYS[0], weights.astype("<f2"))
    np.save(out / ARRAYS[1], np.array([table], "<i4"))


def require_numbers(file: Path) -> None:
    """StepError where a matrix in ``file`` is of whole numbers, or holds one that is not finite. Those of eight bits (F8) are
    not looked into."""
    hint = "bring what PEFT's save_pretrained has written"
    with file.open("rb") as opened:
        try:
            tensors = safetensors.parse(opened.read(safetensors.length(opened.read(safetensors.PREFIX))))
        except ValueError as error:
            raise StepError(f"the adapter's weights cannot be read: {error}", where=str(file), hint=hint) from error
    if whole := next((each for each in tensors if not each.floating), None):
        raise StepError(f"{whole.name} is of {whole.dtype}, and matrices of LoRA are not", where=str(file), hint=hint)
    if all(each.dtype in _TYPES for each in tensors):
        for name, values in _tensors(file):
            if not np.isfinite(values).all():
                raise StepError(f"{name} holds what is no finite number", where=str(file), hint=hint)


def scale(config: Mapping[str, object], module: str, rank: int) -> float:
    """What B x A is multiplied with: lora_alpha / r, or / sqrt(r) where the adapter says use_rslora."""
    stated = config.get("alpha_pattern")
    patterns = cast("Mapping[str, object]", stated if isinstance(stated, dict) else {})
    own = next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), config.get("lora_alpha"))
    alpha = float(own) if isinstance(own, int | float) else 8.0  # PEFT's own default
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _scale(config: Mapping[str, object], module: str, rank: int, adapter: Path) -> float:
    try:
        return scale(config, module, rank)
    except (re.error, OverflowError) as error:
        what = f"{CONFIG} says no scale for {module}: {error}"
        raise StepError(what, where=str(adapter), hint="bring what PEFT's save_pretrained has written") from error


def _narrow(module: str, values: Floats) -> NDArray[np.float16]:
    if not np.isfinite(values).all() or np.abs(values).max() > _LARGEST:
        raise StepError(f"{module} holds numbers that float16 cannot", hint="merge the adapter into its checkpoint")
    return values.astype(np.float16)


def _rows(file: Path, modules: Mapping[str, int]) -> dict[tuple[int, int], _Row]:
    """(layer, number of the module) -> its matrices."""
    rows: dict[tuple[int, int], _Row] = {}
    for name, values in _tensors(file):
        found = _PLACE.fullmatch(name)
        if found is None or found["leaf"] not in modules:
            hint = "a family's plugin says which modules adapters may change (forge_lora_modules)"
            raise StepError(f"{name} is over no module that TensorRT-LLM has adapters for", where=str(file), hint=hint)
        row = rows.setdefault((int(found["layer"]), modules[found["leaf"]]), _Row(found["module"]))
        if row.module != found["module"]:
            raise StepError(f"{row.module} and {found['module']} are one module of TensorRT-LLM's", where=str(file))
        if found["side"] == "A":
            row.a = values
        else:
            row.b = values
    return rows


def _tensors(file: Path) -> Iterator[tuple[str, Floats]]:
    """Every tensor of a safetensors file, as float32."""
    try:
        raw = file.read_bytes()
        begin = safetensors.PREFIX + safetensors.length(raw)
        header = cast("dict[str, dict[str, object]]", json.loads(raw[safetensors.PREFIX : begin]))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = cast("list[int]", entry["data_offsets"])
            dtype = _TYPES[str(entry["dtype"])]
            flat = np.frombuffer(raw, dtype, (last - first) // dtype.itemsize, begin + first)
            yield name, _wide(flat, str(entry["dtype"])).reshape(cast("list[int]", entry["shape"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StepError(f"the adapter's weights cannot be read: {error}", where=str(file)) from error


def _wide(flat: NDArray[np.generic], kind: str) -> Floats:
    if kind == "BF16":
        return (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return flat.astype(np.float32)
