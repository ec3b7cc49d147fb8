"""The stand-in's `tensorrtllm` backend: opens an "engine" as strictly as the original would, and lets the twin serve it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import triton_python_backend_utils as pb_utils
from tensorrt_llm._standin.engine import lay, opened
from tensorrt_llm._standin.executor import Place, terms

from forge.twin.backend import TritonPythonModel as Twin

Parameters = dict[str, dict[str, str]]


class TritonPythonModel(Twin):
    """Lays the checkpoint that rank 0 holds where the twin finds it, beside the limits that the engine was built with."""

    def initialize(self, args: Mapping[str, str]) -> None:
        config = cast("dict[str, object]", json.loads(args["model_config"]))
        parameters = cast("Parameters", config.get("parameters") or {})
        self._laid = tempfile.TemporaryDirectory(prefix="standin-engine-")
        try:
            stated = {name: value.get("string_value", "") for name, value in parameters.items()}
            place = Place.of(os.environ)
            lay(*opened(terms(stated, place, _warn), place), Path(self._laid.name))
        except (OSError, ValueError, KeyError) as error:
            what = f"unexpected error when creating modelInstanceState: {error}"
            raise pb_utils.TritonModelException(what) from error
        parameters["gpt_model_path"] = {"string_value": self._laid.name}
        super().initialize({**args, "model_config": json.dumps({**config, "parameters": parameters})})

    def finalize(self) -> None:
        super().finalize()
        self._laid.cleanup()


def _warn(text: str) -> None:
    pb_utils.Logger.log_warn(f"[TensorRT-LLM][WARNING] {text}")
