"""What a served model was built for: how long its prompts and answers may be, and how exactly it computes."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

from forge.files import texts
from forge.repository import config as repository
from forge.schema.values import Role, RuntimeKind
from forge.serve.lookup import Target
from forge.verify.tolerances import Tolerance, tolerance, twin_tolerance, vllm_tolerance

_MAIN = re.compile(r'"gpt_model_path"\s*value\s*:?\s*\{\s*string_value\s*:\s*"([^"]*)"')
_VLLM = {"max_model_len": "max_seq_len", "max_num_seqs": "max_batch_size"}
"""vLLM's arguments -> what an engine's config.json calls them."""


def engine_folder(target: Target) -> Path:
    """The folder of the engine that answers: of several (a target and its draft, a decoder and its encoder) the one that
    tensorrt_llm is told of first."""
    folder = target.repository / target.model.asset("engines")
    role = target.model.roles.get(Role.TENSORRT_LLM)
    config = target.repository / (role or "") / repository.CONFIG
    with suppress(OSError):
        stated = _MAIN.search(config.read_text(encoding="utf-8"))
        if role and stated and (folder / (named := stated[1].rstrip("/").rpartition("/")[2]) / "config.json").is_file():
            return folder / named
    return folder


def limits(target: Target) -> dict[str, int]:
    """max_input_len, max_seq_len and max_batch_size, as far as they are stated: by an engine's config.json, by what the twin
    has beside its checkpoint, by vLLM's arguments."""
    if target.model.runtime is RuntimeKind.VLLM:
        stated = _arguments(target)
        return {ours: found for name, ours in _VLLM.items() if isinstance(found := stated.get(name), int)}
    folder = engine_folder(target)
    held = texts.document(folder / "config.json")[0]
    built, kind = held.get("build_config"), held.get("pretrained_config")
    table = cast("dict[str, object]", built) if isinstance(built, dict) else texts.document(folder / "build_config.json")[0]
    limits = {name: value for name, value in table.items() if isinstance(value, int)}
    if isinstance(kind, dict) and cast("dict[str, object]", kind).get("architecture") == "DecoderModel":
        # Its own prompt is the token that begins an answer; a client's is its encoder's.
        limits["max_input_len"] = limits.get("max_encoder_input_len", 0)
    return limits


def computed_in(target: Target) -> Tolerance:
    """The row of the table for what it computes in, by the config.json of its engine, or of its checkpoint."""
    model = target.model
    whole = model.runtime in (RuntimeKind.LLMAPI, RuntimeKind.VLLM)
    folder = target.repository / model.asset("model") if whole else engine_folder(target)
    config = texts.document(folder / "config.json")[0]
    if model.runtime is RuntimeKind.VLLM:
        return vllm_tolerance(config, _arguments(target))
    if model.runtime is RuntimeKind.TWIN:
        return twin_tolerance(str(texts.document(folder / "build_config.json")[0].get("weights", "")))
    return tolerance(config)


def _arguments(target: Target) -> Mapping[str, object]:
    return texts.document(target.repository / target.model.front / "1" / "model.json")[0]
