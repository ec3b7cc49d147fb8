"""The stand-in's `tensorrtllm` backend: opens an "engine" as strictly as the original would, and lets the twin serve it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import triton_python_backend_utils as pb_utils
from tensorrt_llm._standin.checkpoint import ORIGIN
from tensorrt_llm._standin.sources import load_json
from tensorrt_llm._standin.tensors import CheckpointError
from tensorrt_llm._standin.tensors import read as read_tensors
from tensorrt_llm.version import __version__

from forge.twin.backend import TritonPythonModel as Twin

Document = Mapping[str, object]


class TritonPythonModel(Twin):
    """Lays the checkpoint that rank 0 holds where the twin finds it, beside the limits that the engine was built with."""

    def initialize(self, args: Mapping[str, str]) -> None:
        config = cast("dict[str, dict[str, object]]", json.loads(args["model_config"]))
        self._laid = tempfile.TemporaryDirectory(prefix="standin-engine-")
        try:
            _open(config, Path(self._laid.name))
        except (OSError, ValueError, KeyError) as error:
            raise pb_utils.TritonModelException(f"[TensorRT-LLM][ERROR] {error}") from error
        config["parameters"]["gpt_model_path"] = {"string_value": self._laid.name}
        super().initialize({**args, "model_config": json.dumps(config)})

    def finalize(self) -> None:
        super().finalize()
        self._laid.cleanup()


def _open(config: Document, into: Path) -> None:
    engines = Path(_parameter(config, "gpt_model_path"))
    document = load_json(engines / "config.json")
    if document.get("version") != __version__:
        raise ValueError(
            f"Serialization assertion failed: the engine is of TensorRT-LLM {document.get('version')}, this is "
            f"{__version__}. Version tag does not match."
        )
    pretrained = cast("dict[str, object]", document["pretrained_config"])
    build = cast("dict[str, object]", document["build_config"])
    world = cast("dict[str, int]", pretrained["mapping"])["world_size"]
    for rank in range(world):
        if not (engines / f"rank{rank}.engine").exists():
            raise CheckpointError(f"Error opening engine file: {engines}/rank{rank}.engine")
    _check(config, build)
    engine = (engines / "rank0.engine").resolve()
    origin = json.loads(read_tensors(engine).metadata[ORIGIN])
    limits = {name: build[name] for name in ("max_input_len", "max_seq_len")}
    (into / "config.json").write_text(json.dumps(origin), encoding="utf-8")
    (into / "build_config.json").write_text(json.dumps(limits), encoding="utf-8")
    (into / "model.safetensors").symlink_to(engine)


def _check(config: Document, build: Document) -> None:
    """What the engine was not built for."""
    batch, built = cast("int", config.get("max_batch_size", 0)), cast("int", build["max_batch_size"])
    if batch > built:
        raise ValueError(f"triton_max_batch_size is {batch}, and the engine was built for max_batch_size {built}")
    beams, most = int(_parameter(config, "max_beam_width") or 1), cast("int", build["max_beam_width"])
    if beams > most:
        raise ValueError(f"max_beam_width is {beams}, and the engine was built for {most}")
    paged = cast("dict[str, object]", build["plugin_config"])["use_paged_context_fmha"]
    if _parameter(config, "enable_kv_cache_reuse").lower() != "false" and not paged:  # reuse is on unless it is said
        raise ValueError("KV cache reuse needs an engine built with paged context FMHA (use_paged_context_fmha)")


def _parameter(config: Document, name: str) -> str:
    """A parameter's text; empty where it is absent or was never filled."""
    parameters = cast("dict[str, dict[str, str]]", config.get("parameters", {}))
    value = parameters.get(name, {}).get("string_value", "")
    return "" if value.startswith("${") else value
