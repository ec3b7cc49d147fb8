"""An adapter as a model of TensorRT-LLM is asked with it: a number, and what the server needs where it does not hold it.

The server keeps adapters in a cache and drops the one that was used longest ago; a request with a number that is not there is
refused, and asked once more with the arrays. llmapi's model reads an adapter from a folder that it sees.

Sources: docs/lora.md of tensorrtllm_backend; triton_backend/all_models/llmapi of TensorRT-LLM.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from forge.errors import InferenceError
from forge.files import texts
from forge.schema.adapters import ARRAYS
from forge.schema.values import Scalar

TASK, WEIGHTS, CONFIG = "lora_task_id", "lora_weights", "lora_config"
"""Inputs of NVIDIA's models for an adapter."""
MISSING = "not found in cache. Please send LoRA weights"
"""What TensorRT-LLM says of a task id whose weights it does not hold (peftCacheManager.cpp)."""
_LARGEST = 1 << 32
_DATATYPES = {"<f2": "FP16", "<f4": "FP32", "<i4": "INT32"}


class LoraTask(Struct, frozen=True):
    """The adapter of a request: ``id`` is its number at the server, ``folder`` holds its arrays (model.lora_weights.npy and
    model.lora_config.npy). ``sent`` says that they go with the request. ``place`` is for llmapi's model: the folder of PEFT's
    files as the server sees it."""

    id: int
    folder: Path
    sent: bool = False
    place: str = ""

    def words(self, name: str) -> dict[str, Scalar]:
        """Inputs of the model for an adapter of that name."""
        return {"lora_id": self.id, "lora_name": name, "lora_path": self.place} if self.place else {TASK: self.id}

    def with_arrays(self) -> "LoraTask":
        return replace(self, sent=True)

    def arrays(self) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
        """(input, datatype, shape, content) of both; InferenceError where one cannot be read."""
        for name, file in zip((WEIGHTS, CONFIG), ARRAYS, strict=True):
            yield (name, *array(self.folder / file))


def array(file: Path) -> tuple[str, tuple[int, ...], bytes]:
    """Datatype, shape and content of a .npy, as forge and NVIDIA's script write it; InferenceError for another file."""
    from numpy.lib.format import read_array

    try:
        held = read_array(BytesIO(texts.content(file, _LARGEST)), allow_pickle=False)
        return _DATATYPES[held.dtype.str], held.shape, held.tobytes()
    except (texts.Odd, ValueError, KeyError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        what, hint = f"an array of the adapter cannot be read: {error}", "build the model again: `forge build` lays it"
        raise InferenceError(what, where=str(file), hint=hint) from error
