"""The twin as Triton sees it: a Python-based backend that stands where NVIDIA's C++ `tensorrtllm` backend would."""

# Triton puts its classes into pb_utils only after this module was imported: annotations must not look for them yet.
from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import triton_python_backend_utils as pb_utils

from . import pipe
from .answers import Answer, agree, refuse
from .architectures import section
from .asks import MAX_ANSWERS, Limits, is_stop, read_asks
from .batching import Loop
from .faults import CheckpointFault, RequestFault
from .loading import build_limit, load
from .pieces import Pieces
from .post import Post
from .ways import Piped, Responses, Way

# Triton's threads want the interpreter between a step's numpy calls; the default of 5 ms would hold tokens back that long.
_SWITCH_SECONDS = 0.0005
_DEFAULT_CHECK_MS = 100
FULL = "{} requests wait here already: ask again later (limits.max_queued of the recipe lets more wait)"


class TritonPythonModel:
    """Triton makes one per model instance and calls ``initialize``, ``execute`` and ``finalize``."""

    def initialize(self, args: Mapping[str, str]) -> None:
        settings = _Settings(cast("dict[str, object]", json.loads(args["model_config"])))
        began = time.monotonic()
        folder = Path(settings.parameter("gpt_model_path"))
        try:
            decoder = load(folder)
            length = build_limit(folder, "max_seq_len", decoder.positions)
            self._limits = Limits(
                vocabulary=decoder.vocabulary,
                max_input_len=build_limit(folder, "max_input_len", length if decoder.begins is None else decoder.positions),
                max_seq_len=length,
                max_beam_width=build_limit(folder, "max_beam_width", settings.number("max_beam_width", 1)),
                max_answers=build_limit(folder, "max_answers", MAX_ANSWERS),
                decoupled=settings.decoupled,
                exclude_input=settings.parameter("exclude_input_in_output").lower() in {"true", "1"},
                declared=frozenset(settings.outputs),
                begins=decoder.begins,
            )
        except CheckpointFault as fault:
            raise pb_utils.TritonModelException(str(fault)) from fault
        self._outputs, self._decoupled, self._most = settings.outputs, settings.decoupled, settings.most
        self._pieces = Pieces.of(settings.parameter("tokenizer_dir"))
        period = settings.number("cancellation_check_period_ms", _DEFAULT_CHECK_MS) / 1000.0
        self._loop = Loop(decoder, settings.max_batch_size, time.monotonic, period)
        self._post = Post()
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._thread = threading.Thread(target=self._loop.run, name="decoding", daemon=True)
        self._thread.start()
        seconds = f"{time.monotonic() - began:.2f} s"
        pb_utils.Logger.log_info(f"twin: {args['model_name']} read {folder} in {seconds}, multiplies by {decoder.says}")

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        """Hands requests to the loop; answers come from its thread, through the response senders."""
        for request in requests:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            if is_stop(tensors):
                self._loop.stop(request.request_id())
                agree(request, self._post, decoupled=self._decoupled)
                continue
            try:
                asks = read_asks(tensors, self._limits)
                way = self._way(request)
            except RequestFault as fault:
                refuse(request, str(fault), self._post)
                continue
            if self._most and self._loop.waiting >= self._most:
                refuse(request, FULL.format(self._most), self._post, busy=True)
                continue
            if way is None:
                agree(request, self._post, decoupled=self._decoupled)
                continue
            self._loop.submit(Answer(request, asks, self._outputs, self._pieces, way, decoupled=self._decoupled))

    def _way(self, request: pb_utils.InferenceRequest) -> Way | None:
        """How its answers go back: by a pipe where one is named; None where its reader has gone already."""
        name = pipe.named(request.parameters()) if self._decoupled else ""
        if not name:
            return Responses(request.get_response_sender(), self._post, decoupled=self._decoupled)
        opened = pipe.opened(name)
        return Piped(opened, request.get_response_sender(), self._post) if opened else None

    def finalize(self) -> None:
        self._loop.close()
        self._thread.join()
        self._post.close()


class _Settings:
    """What the model's config.pbtxt says, as Triton hands it over: JSON with every parameter a string."""

    def __init__(self, config: Mapping[str, object]) -> None:
        self._parameters = section(config, "parameters")
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.max_batch_size = int(str(config.get("max_batch_size", 0)))
        if self.max_batch_size < 1:
            raise pb_utils.TritonModelException("max_batch_size must be at least 1: the tensors have a batch dimension")
        policy = section(section(config, "dynamic_batching"), "default_queue_policy")
        self.most = int(str(policy.get("max_queue_size", 0)))
        """Requests that may wait; 0 is any number. Triton's own queue keeps none back: what is here was taken from there."""
        outputs = cast("Sequence[Mapping[str, str]]", config.get("output", ()))
        self.outputs = {entry["name"]: pb_utils.triton_string_to_numpy(entry["data_type"]) for entry in outputs}

    def parameter(self, name: str) -> str:
        """A parameter's text; empty where it is absent or its placeholder was never filled."""
        value = str(section(self._parameters, name).get("string_value", ""))
        return "" if value.startswith("${") else value

    def number(self, name: str, default: int) -> int:
        value = self.parameter(name)
        if value and not value.isdigit():
            raise pb_utils.TritonModelException(f"parameter {name} is {value!r}; a whole number is needed")
        return int(value) if value else default
