"""LoRA adapters as PEFT saves them: ``adapter_config.json`` beside ``adapter_model.safetensors``. Touches nothing.

Source: PEFT's docs/source/developer_guides/checkpoint.md. A tensor is called ``base_model.model.<module>.lora_A.weight`` with
the shape (r, inputs of the module), and ``...lora_B.weight`` with (outputs, r); the model adds B x A x lora_alpha / r.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from typing import cast

from msgspec import Struct

from forge.files.safetensors import Tensor
from forge.schema.values import Pinned

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FOLDER = "loras"
"""Under a model's assets: each adapter's folder, by its name."""
TASKS = "loras.json"
"""Under the assets of a model of TensorRT-LLM: each adapter's name -> its number (at an engine also its folder's name)."""
ARRAYS = ("model.lora_weights.npy", "model.lora_config.npy")
"""An adapter as TensorRT-LLM takes it, under the names that it looks for: [1, rows, widest] of each module of each layer, and
[1, rows, 3], which says their module, layer and rank."""
BETWEEN = ":"
"""Between a model's name and an adapter's, where one word names both; neither can hold it."""
_PART = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>embedding_[AB]|[AB])(?:\.\w+)?(?:\.weight)?\Z")

Row = tuple[int, int, int]
"""Module, layer and rank."""


class Pair(Struct, frozen=True):
    """The two matrices over one module, by their shapes: ``a`` (r, inputs), ``b`` (outputs, r); None where it is missing."""

    module: str
    a: tuple[int, ...] | None = None
    b: tuple[int, ...] | None = None

    @property
    def leaf(self) -> str:
        """The module's own name, without those that it lies in."""
        return self.module.rpartition(".")[2]


class Adapter(Struct, frozen=True):
    """One adapter of a recipe with what was learnt of it: its config, and its tensors where its source says them."""

    name: str
    pinned: Pinned
    config: Mapping[str, object]
    tensors: tuple[Tensor, ...] = ()
    stated: int | None = None
    """The most that its recipe lets its rank be."""

    @property
    def r(self) -> int:
        """Its rank, by its config; 0 where that says none. The largest where some modules have another."""
        ranks = (self.config.get("r"), *self._pattern("rank_pattern").values())
        return max((each for each in ranks if isinstance(each, int) and not isinstance(each, bool)), default=0)

    def own(self, pattern: str, usual: str) -> tuple[str, ...]:
        """Modules that have another number than the rest: ``pattern`` of its config has theirs, ``usual`` that of all."""
        return tuple(key for key, value in self._pattern(pattern).items() if value != self.config.get(usual))

    def _pattern(self, name: str) -> Mapping[str, object]:
        stated = self.config.get(name)
        return cast("Mapping[str, object]", stated) if isinstance(stated, Mapping) else {}

    @property
    def rank(self) -> int:
        """What has to be kept free for it."""
        return self.stated or self.r

    @property
    def base(self) -> str:
        """What it was trained over, as it says itself; empty where it does not."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        return sum(file.size for file in self.pinned.files if file.path == WEIGHTS)

    def pairs(self) -> tuple[Pair, ...]:
        """Its matrices by module, in the order of its file."""
        shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for tensor in self.tensors:
            if found := _PART.fullmatch(tensor.name):
                shapes.setdefault(found["module"], {})[found["side"][-1]] = tensor.shape
        return tuple(Pair(module, sides.get("A"), sides.get("B")) for module, sides in shapes.items())

    def strange(self) -> Iterator[str]:
        """Tensors that are no matrices of LoRA's, by name."""
        yield from (tensor.name for tensor in self.tensors if not _PART.fullmatch(tensor.name))


class AdapterFolder(Struct, frozen=True):
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
