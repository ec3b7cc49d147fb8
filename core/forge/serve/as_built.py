"""What a published model was built for, and by what, as the files that lie in its repository say."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from forge.files import texts
from forge.schema.manifest import PublishedModel

_BUILT = ("max_batch_size", "max_input_len", "max_seq_len", "max_beam_width", "max_num_tokens")
_VLLM = {"max_model_len": "max_seq_len", "max_num_seqs": "max_batch_size", "max_num_batched_tokens": "max_num_tokens"}


def limits(place: Path, model: PublishedModel) -> dict[str, int]:
    """What it was built for: by the file that lies beside an engine, or the twin's; or what vLLM or LLM() is told."""
    folder = place / model.asset("engines")
    stated, _ = texts.document(folder / "build_config.json")
    if not stated:
        inner = _config(place, model).get("build_config")
        stated = cast("dict[str, object]", inner) if isinstance(inner, dict) else _arguments(place / model.front / "1")
    return {key: value for key in _BUILT if isinstance(value := stated.get(key), int)}


def _arguments(folder: Path) -> dict[str, object]:
    """vLLM's or llmapi's, by an engine's names; both files are JSON as forge writes them."""
    told = {**texts.document(folder / "model.json")[0], **texts.document(folder / "model.yaml")[0]}
    return {_VLLM.get(name, name): value for name, value in told.items()}


def version(place: Path, model: PublishedModel) -> str:
    """The TensorRT-LLM that built an engine; empty where no file says it."""
    stated = _config(place, model).get("version")
    return stated if isinstance(stated, str) else ""


def _config(place: Path, model: PublishedModel) -> Mapping[str, object]:
    return texts.document(place / model.asset("engines") / "config.json")[0]
