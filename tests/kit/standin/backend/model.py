"""The stand-in's `tensorrtllm` backend: opens an "engine" as strictly as the original would, and lets the twin serve it."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray
from tensorrt_llm._standin import lora
from tensorrt_llm._standin.engine import Engine, lay, opened
from tensorrt_llm._standin.executor import Place, RefusedError, terms

from forge.twin.answers import refuse
from forge.twin.asks import is_stop
from forge.twin.backend import TritonPythonModel as Twin
from forge.twin.batching import Loop
from forge.twin.checkpoint import Weights, read_json, widened
from forge.twin.decoder import NumpyDecoder
from forge.twin.shape import read_shape

Parameters = dict[str, dict[str, str]]
LORA = ("lora_task_id", "lora_weights", "lora_config")


class TritonPythonModel(Twin):
    """Lays the checkpoint that rank 0 holds where the twin finds it, beside the limits that the engine was built with."""

    def initialize(self, args: Mapping[str, str]) -> None:
        config = cast("dict[str, object]", json.loads(args["model_config"]))
        parameters = cast("Parameters", config.get("parameters") or {})
        self._laid = tempfile.TemporaryDirectory(prefix="standin-engine-")
        try:
            stated = {name: value.get("string_value", "") for name, value in parameters.items()}
            place = Place.of(os.environ)
            engine, encoder = opened(terms(stated, place, _warn), place)
            lay(engine, encoder, Path(self._laid.name))
            self._adapters = self._cache(engine, stated) if encoder is None else None
        except (OSError, ValueError, KeyError) as error:
            what = f"unexpected error when creating modelInstanceState: {error}"
            raise pb_utils.TritonModelException(what) from error
        parameters["gpt_model_path"] = {"string_value": self._laid.name}
        super().initialize({**args, "model_config": json.dumps({**config, "parameters": parameters})})

    def _cache(self, engine: Engine, stated: Mapping[str, str]) -> lora.Cache[Loop]:
        """The adapters: each a decoder of its own over weights with the adapter in them, in a thread of its own."""
        folder, places = Path(self._laid.name), engine.limit("max_batch_size")

        def begun(deltas: lora.Deltas) -> Loop:
            decoder = NumpyDecoder(read_shape(read_json(folder / "config.json")), _Adapted(folder, deltas))
            loop = Loop(decoder, places, time.monotonic, 0.1)
            threading.Thread(target=loop.run, name="adapted", daemon=True).start()
            return loop

        cache = lora.Cache(lora.read(engine.model, engine.build, stated), begun, Loop.close)
        if engine.plugin("lora_plugin") and stated.get("lora_prefetch_dir"):
            cache.prefetch(Path(stated["lora_prefetch_dir"]), _warn)
        return cache

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        """Requests with an adapter go to its own loop, without the tensors that named it."""
        for request in requests:
            tensors = {tensor.name(): tensor for tensor in request.inputs()}
            told = {name: tensors[name].as_numpy() for name in LORA if name in tensors}
            own = self._loop
            try:
                if is_stop({name: tensors[name].as_numpy() for name in ("stop",) if name in tensors}):
                    for loop in self._adapters.held if self._adapters else ():
                        loop.stop(request.request_id())
                elif told:
                    self._loop = self._adapted(told)
                super().execute([_Without(request, LORA)])  # type: ignore[list-item]
            except RefusedError as error:
                refuse(request, str(error), self._post)
            finally:
                self._loop = own

    def _adapted(self, told: Mapping[str, NDArray[np.generic]]) -> Loop:
        if LORA[0] not in told:
            raise RefusedError("lora_task_id must be set for LoRA inference")
        if self._adapters is None:
            raise RefusedError("the stand-in adds no adapters to an encoder with a decoder")
        return self._adapters.take(int(told[LORA[0]].reshape(-1)[0]), told.get(LORA[1]), told.get(LORA[2]))

    def finalize(self) -> None:
        if self._adapters:
            self._adapters.close()
        super().finalize()
        self._laid.cleanup()


class _Adapted(Weights):
    """A checkpoint's weights with an adapter's added."""

    def __init__(self, folder: Path, deltas: lora.Deltas) -> None:
        super().__init__(folder)
        self._deltas = deltas

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return widened(self.stored(name))

    def stored(self, name: str) -> NDArray[np.generic]:
        held, more = super().stored(name), self._deltas.get(name[name.find("layers.") :])
        return held if more is None else widened(held) + more


class _Without:
    """A request without some of its inputs."""

    def __init__(self, request: pb_utils.InferenceRequest, hidden: Sequence[str]) -> None:
        self._request, self._hidden = request, hidden

    def inputs(self) -> list[pb_utils.Tensor]:
        return [each for each in self._request.inputs() if each.name() not in self._hidden]

    def __getattr__(self, name: str) -> object:
        return getattr(self._request, name)


def _warn(text: str) -> None:
    pb_utils.Logger.log_warn(f"[TensorRT-LLM][WARNING] {text}")
