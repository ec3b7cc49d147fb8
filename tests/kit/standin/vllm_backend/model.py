"""The stand-in's `vllm` backend, where NVIDIA's own is not at hand (`make originals`): the same tensors and words in miniature.

As there, a model wants `decoupled` and a model.json of AsyncEngineArgs that it hands to vLLM as it is; what a step of vLLM says
goes out by its place; sampling parameters that vLLM does not take are named in the log alone.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import triton_python_backend_utils as pb_utils
from vllm import AsyncEngineArgs, AsyncLLMEngine, CompletionOutput, RequestOutput, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import StructuredOutputsParams

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        self._config = cast("dict[str, dict[str, dict[str, str]]]", json.loads(args["model_config"]))
        if not pb_utils.using_decoupled_model_transaction_policy(self._config):
            raise AssertionError("vLLM Triton backend must be configured to use decoupled model transaction policy")
        folder = Path(args["model_repository"]) / args["model_version"]
        stated = cast("dict[str, object]", json.loads((folder / "model.json").read_text()))
        parts = int(str(stated.get("tensor_parallel_size", 1))) * int(str(stated.get("pipeline_parallel_size", 1)))
        if parts > 1 and args["model_instance_kind"] == "GPU":
            raise ValueError("KIND_GPU is currently for single-GPU models, please specify KIND_MODEL")
        self._loras: dict[str, str] = {}
        if str(stated.get("enable_lora", "")).lower() == "true":
            self._loras = json.loads((folder / "multi_lora.json").read_text())
        self._engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**stated))  # a TypeError for what it does not know
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        watched = self._config.get("parameters", {}).get("ENABLE_VLLM_HEALTH_CHECK", {}).get("string_value") == "true"
        if watched and self._engine.errored:
            pb_utils.unload_model(str(self._config["name"]))
            dead = pb_utils.TritonError("Model is unavailable due to unhealthy vLLM engine", pb_utils.TritonError.UNAVAILABLE)
            for request in requests:
                request.get_response_sender().send(pb_utils.InferenceResponse(error=dead), flags=FINAL)
            return
        for request in requests:
            asyncio.run_coroutine_threadsafe(self._infer(_Ask(request)), self._loop)

    def finalize(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._engine.shutdown()

    async def _infer(self, ask: _Ask) -> None:
        ended = False
        try:
            said, heard = None, [0] * 64
            adapter = self._adapter(ask.lora())
            stream = self._engine.generate(ask.prompt, ask.sampling(), uuid.uuid4().hex, lora_request=adapter)
            async for said in stream:
                if ask.sender.is_cancelled():
                    await self._cancel(stream)
                    ask.sender.send(flags=FINAL)
                    return
                if ask.stream:
                    ended = said.finished
                    ask.sender.send(ask.response(said, heard, ""), flags=FINAL if ended else 0)
            if not ask.stream and said is not None:
                ask.sender.send(ask.response(said, [0] * 64, "" if ask.excludes else ask.prompt), flags=FINAL)
                ended = True
        except Exception as error:  # noqa: BLE001 (as the original: whatever it was, the request has an answer)
            if not ended:
                what = pb_utils.TritonError(f"Error generating stream: {error}")
                ask.sender.send(pb_utils.InferenceResponse(error=what), flags=FINAL)

    def _adapter(self, name: str | None) -> LoRARequest | None:
        if name is None:
            return None
        if not self._loras:
            raise ValueError("LoRA feature is not enabled.")
        if name not in self._loras:
            raise ValueError(f"LoRA {name} is not supported, we currently support {list(self._loras)}")
        number = list(self._loras).index(name) + 1
        return LoRARequest(str(number), number, self._loras[name])

    async def _cancel(self, stream: AsyncGenerator[RequestOutput]) -> None:
        """vLLM ends a request whose generator is told that it is cancelled."""
        with suppress(asyncio.CancelledError, StopAsyncIteration):
            await stream.athrow(asyncio.CancelledError())


class _Ask:
    """One request."""

    def __init__(self, request: pb_utils.InferenceRequest) -> None:
        self.sender = request.get_response_sender()
        self._held = {tensor.name(): tensor.as_numpy()[0] for tensor in request.inputs()}
        self.prompt = cast("bytes", self._held["text_input"]).decode()
        self.stream = bool(self._held.get("stream", False))
        self.excludes = bool(self._held.get("exclude_input_in_output", self.stream))
        self._parameters = request.parameters()
        self._shown: dict[int, int] = {}

    def _words(self) -> dict[str, Any]:
        stated = self._held.get("sampling_parameters")
        return json.loads(cast("bytes", stated).decode() if stated is not None else self._parameters)

    def lora(self) -> str | None:
        with suppress(ValueError):
            return self._words().get("lora_name")
        return None

    def sampling(self) -> SamplingParams:
        if self.stream and not self.excludes:
            raise ValueError("When streaming, `exclude_input_in_output` = False is not allowed.")
        try:
            words = self._words()
            words.pop("lora_name", None)
            if "structured_outputs" in words:
                words["structured_outputs"] = StructuredOutputsParams(**json.loads(words["structured_outputs"]))
            return SamplingParams(**words)
        except Exception as error:
            pb_utils.Logger.log_error(f"[vllm] Was trying to create `TritonSamplingParams`, but got exception: {error}")
            raise AttributeError("'NoneType' object has no attribute 'lora_name'") from error

    def response(self, said: RequestOutput, heard: list[int], before: str) -> pb_utils.InferenceResponse:
        """What is new of each output, by its place."""
        outputs = said.outputs
        news = [output.token_ids[heard[place] :] for place, output in enumerate(outputs)]
        texts = [before + output.text[self._shown.get(place, 0) :] for place, output in enumerate(outputs)]
        self._shown = {place: len(output.text) for place, output in enumerate(outputs)}
        made = {
            "finish_reason": lambda: np.array([str(output.finish_reason) for output in outputs], np.object_),
            "cumulative_logprob": lambda: np.array([output.cumulative_logprob for output in outputs], np.float32),
            "logprobs": lambda: np.array([_logprobs(output, heard[at]) for at, output in enumerate(outputs)], np.object_),
            "num_input_tokens": lambda: np.asarray(len(said.prompt_token_ids or ()), np.uint32),
            "num_output_tokens": lambda: np.array([len(new) for new in news], np.uint32),
        }
        tensors = [pb_utils.Tensor("text_output", np.array([text.encode() for text in texts], np.object_))]
        tensors += [pb_utils.Tensor(name, make()) for name, make in made.items() if self._held.get(f"return_{name}")]
        for place, output in enumerate(outputs):
            heard[place] = len(output.token_ids)
        return pb_utils.InferenceResponse(tensors)


def _logprobs(output: CompletionOutput, after: int) -> bytes:
    if output.logprobs is None:
        return b"null"
    places = output.logprobs[after:]
    said = [{token: {"logprob": held.logprob, "rank": held.rank} for token, held in place.items()} for place in places]
    return json.dumps(said).encode()
