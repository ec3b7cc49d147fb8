"""The skeletons of NVIDIA's image as the stand-in has them: forge's own, and what theirs have besides for LoRA adapters."""

from msgspec.structs import replace

from forge.repository import config
from forge.schema.values import Role, TextFile

_INPUTS = """
input { name: "lora_task_id" data_type: TYPE_UINT64 dims: [ 1 ] %soptional: true }
input { name: "lora_weights" data_type: TYPE_FP16 dims: [ -1, -1 ] allow_ragged_batch: true optional: true }
input { name: "lora_config" data_type: TYPE_INT32 dims: [ -1, 3 ] allow_ragged_batch: true optional: true }

output { name: "%s"
"""
_FIRST = {Role.TENSORRT_LLM: "output_ids", Role.BLS: "text_output", Role.ENSEMBLE: "text_output"}
_NAMES = ("lora_task_id", "lora_weights", "lora_config")
_STREAM = '    input_map { key: "streaming" value: "stream" }\n'
_ROW = "            rows.append("
_HANDED = f"            own |= {{name: np.atleast_2d(given[name]) for name in {_NAMES} if name in given}}\n"


def skeletons() -> tuple[TextFile, ...]:
    """Path in the folder of skeletons, and content."""
    return tuple(replace(each, content=_adapted(each)) for each in config.skeletons())


def _adapted(file: TextFile) -> str:
    text = file.content
    for role, first in _FIRST.items():
        if file.path == f"{role}/{config.CONFIG}":
            shape = "" if role is Role.ENSEMBLE else "reshape { shape: [ ] } "
            text = _put(text, f'\noutput {{ name: "{first}"', _INPUTS.rstrip("\n") % (shape, first))
    if file.path == f"{Role.ENSEMBLE}/{config.CONFIG}":
        maps = "".join(f'    input_map {{ key: "{name}" value: "{name}" }}\n' for name in _NAMES)
        text = _put(text, _STREAM, _STREAM + maps)
    if file.path == f"{Role.BLS}/1/model.py":
        text = _put(text, _ROW, _HANDED + _ROW)
    return text


def _put(text: str, before: str, after: str) -> str:
    """``text`` with one thing in another's place; it has to be there."""
    if text.count(before) != 1:
        raise AssertionError(f"forge's skeletons hold {before!r} {text.count(before)} times")
    return text.replace(before, after)
