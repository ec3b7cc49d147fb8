"""The stand-in's llmapi model: LLM() arguments out of model.yaml, text in and out, the twin's decoder underneath.

As NVIDIA's own: a stream's every answer holds the whole text so far, the prompt in front unless it is excluded, and a prompt
with a batch dimension is refused.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import triton_python_backend_utils as pb_utils
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]
from tensorrt_llm._standin.lora import DEFAULT
from tokenizers import Tokenizer

from forge.twin.asks import Ask
from forge.twin.batching import Loop
from forge.twin.checkpoint import Weights, read_json, widened
from forge.twin.decoder import Decoder, NumpyDecoder
from forge.twin.faults import CheckpointFault
from forge.twin.loading import load
from forge.twin.sampling import Sampling
from forge.twin.shape import read_shape
from forge.twin.voices import Voice, ends_with

ARGUMENTS = frozenset(
    {
        *("model", "tokenizer", "backend", "dtype", "tensor_parallel_size", "pipeline_parallel_size"),
        *("max_batch_size", "max_seq_len", "max_num_tokens", "max_input_len", "max_beam_width", "kv_cache_config"),
        *("quant_config", "speculative_config", "scheduler_config", "cuda_graph_config", "enable_chunked_prefill"),
        *(
            "kv_cache_dtype",
            "trust_remote_code",
            "disable_overlap_scheduler",
            "load_format",
            "tokenizer_mode",
            "skip_tokenizer_init",
        ),
        *("lora_config", "enable_lora", "peft_cache_config"),
        *("moe_expert_parallel_size", "moe_tensor_parallel_size", "attn_backend", "gpus_per_node", "revision"),
    }
)
"""What the stand-in takes for LLM(): an unknown argument is an error, as it is there."""
LORA = ("lora_id", "lora_name", "lora_path")
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_PLACES = 16


def arguments() -> tuple[dict[str, object], dict[str, object]]:
    """(LLM() arguments, triton_config) of the model.yaml beside this file."""
    file = Path(__file__).parent / "model.yaml"
    stated = cast("dict[str, object]", yaml.safe_load(file.read_text(encoding="utf-8")))
    triton = cast("dict[str, object]", stated.pop("triton_config", {}) or {})
    if unknown := sorted(set(stated) - ARGUMENTS):
        raise ValueError(f"1 validation error for LlmArgs: {', '.join(unknown)}: Extra inputs are not permitted")
    return stated, triton


def _draft(speculation: Mapping[str, object]) -> None:
    """What guesses has to be there, though nothing is guessed here."""
    names = ("speculative_model_dir", "pytorch_weights_path", "pytorch_eagle_weights_path")
    for folder in (str(speculation[name]) for name in names if name in speculation):
        read_json(Path(folder) / "config.json")


class Exchange:
    """One request (see the twin's batching.Exchange): text goes out where a character ends."""

    def __init__(
        self, request: pb_utils.InferenceRequest, ask: Ask, tokenizer: Tokenizer, before: str, told: frozenset[str]
    ) -> None:
        self._told = told
        """Outputs beside the text: only what is asked for is sent."""
        self.request_id = request.request_id()
        self.asks: tuple[Ask, ...] = (ask,)
        self._sender, self._tokenizer, self._before = request.get_response_sender(), tokenizer, before

    def cancelled(self) -> bool:
        return self._sender.is_cancelled()

    def read(self, row: int, logits: object) -> None:
        """Nobody asks for the prompt's logits."""

    def said(self, row: int, sample: int, voice: Voice) -> None:
        line, ask = voice.lines()[0], self.asks[row]
        if not (ask.streaming or voice.done):
            return
        text = self._tokenizer.decode(line.tokens)
        if not voice.done and text.endswith("\ufffd"):
            return
        whole = self._before + text
        cut = len(line.tokens) >= ask.max_tokens and not ends_with(line.tokens, ask)
        ended = ("length" if cut else "stop") if voice.done else None
        outputs = {"finish_reason": str(ended), "stop_reason": "None", "cumulative_logprob": str(line.cumulative)}
        outputs = {"text_output": whole} | {name: value for name, value in outputs.items() if name in self._told}
        tensors = [pb_utils.Tensor(name, np.array([value.encode()], dtype=np.object_)) for name, value in outputs.items()]
        self._sender.send(pb_utils.InferenceResponse(tensors), flags=_FINAL if voice.done else 0)

    def fail(self, what: str) -> None:
        self._sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(what)), flags=_FINAL)

    def end(self) -> None:
        self._sender.send(flags=_FINAL)


class TritonPythonModel:
    """Triton makes one per model instance."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: object) -> object:
        """Put triton_config into the model's config; a server that completes no configs never calls this."""
        _, triton = arguments()
        config = cast("AutoConfig", auto_complete_model_config)
        config.set_max_batch_size(cast("int", triton.get("max_batch_size", 0)))
        config.set_model_transaction_policy({"decoupled": bool(triton.get("decoupled"))})
        return config

    def initialize(self, args: Mapping[str, str]) -> None:
        stated, triton = arguments()
        self._decoupled = bool(triton["decoupled"])
        if self._decoupled != pb_utils.using_decoupled_model_transaction_policy(json.loads(args["model_config"])):
            raise pb_utils.TritonModelException("model.yaml and config.pbtxt disagree about decoupled")
        folder = Path(str(stated["model"]))
        try:
            _draft(cast("dict[str, object]", stated.get("speculative_config") or {}))
            self._decoder = load(folder)
            config = read_json(folder / "config.json")
        except CheckpointFault as fault:
            raise pb_utils.TritonModelException(str(fault)) from fault
        self._tokenizer = Tokenizer.from_file(str(Path(str(stated.get("tokenizer") or folder)) / "tokenizer.json"))
        end = config.get("eos_token_id")
        self._end = cast("int", end[0] if isinstance(end, list) else end)
        self._longest = min(cast("int", stated.get("max_seq_len") or self._decoder.positions), self._decoder.positions)
        self._folder, self._places = folder, cast("int", stated.get("max_batch_size") or _PLACES)
        self._lora = cast("dict[str, object]", stated.get("lora_config") or {})
        self._adapted: dict[int, Loop] = {}
        self._loop = self._looping(self._decoder)

    def _looping(self, decoder: Decoder) -> Loop:
        loop = Loop(decoder, self._places, time.monotonic, 0.1)
        threading.Thread(target=loop.run, daemon=True).start()
        return loop

    def _chosen(self, asked: Asked) -> Loop:
        """The loop of the adapter that a request names; ValueError as helpers.py and LoRARequest have it."""
        told = [asked.one(name, default=None) for name in LORA]
        if told == [None, None, None]:
            return self._loop
        if None in told:
            raise ValueError("lora_id, lora_name, and lora_path must all be provided together")
        number, place = int(cast("int", told[0])), Path(cast("bytes", told[2]).decode())
        if not place.exists():
            raise ValueError(f"lora_path does not exist on the Triton server's filesystem: {place}")
        if not self._lora:
            raise ValueError("LoRA is asked for, and LLM() was made without lora_config")
        if number not in self._adapted:
            weights = Adapted(self._folder, place, self._lora)
            self._adapted[number] = self._looping(NumpyDecoder(read_shape(read_json(self._folder / "config.json")), weights))
        return self._adapted[number]

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            asked = Asked(request)
            if asked.one("stop", default=False):
                for loop in (self._loop, *self._adapted.values()):
                    loop.stop(request.request_id())
                request.get_response_sender().send(flags=_FINAL)
                continue
            try:
                self._chosen(asked).submit(self._exchange(request, asked))
            except ValueError as error:
                wrong = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                request.get_response_sender().send(pb_utils.InferenceResponse(error=wrong), flags=_FINAL)

    def finalize(self) -> None:
        for loop in (self._loop, *self._adapted.values()):
            loop.close()

    @staticmethod
    def generate_async(inputs: Ask, sampling: Sampling, lora_request: object = None, *, streaming: bool = False) -> Ask:
        """LLM.generate_async's parameters, as far as they are used here; ``streaming`` is a later one there."""
        return replace(inputs, sampling=sampling, streaming=streaming)

    def _exchange(self, request: pb_utils.InferenceRequest, asked: Asked) -> Exchange:
        if asked.dimensions("text_input") > 1:
            raise ValueError("The current implementation only supports text_input being a 1D tensor.")
        text = cast("bytes", asked.one("text_input", default=b"")).decode()
        prompt = np.array(self._tokenizer.encode(text).ids, np.int64)
        wanted = int(cast("int", asked.one("sampling_param_max_tokens", default=32)))
        streaming = bool(asked.one("streaming", default=False))
        if streaming and not self._decoupled:
            raise ValueError("Streaming is only supported in decoupled mode.")
        if len(prompt) + wanted > self._longest:
            raise ValueError(f"prompt length ({len(prompt)}) + max_tokens ({wanted}) exceeds max_seq_len ({self._longest})")
        sampling = Sampling(
            top_k=int(cast("int", asked.one("sampling_param_top_k", default=0))),
            top_p=float(cast("float", asked.one("sampling_param_top_p", default=0.0))),
            temperature=float(cast("float", asked.one("sampling_param_temperature", default=1.0))),
            seed=int(cast("int", asked.one("sampling_param_seed", default=0))),
            presence_penalty=float(cast("float", asked.one("sampling_param_presence_penalty", default=0.0))),
            frequency_penalty=float(cast("float", asked.one("sampling_param_frequency_penalty", default=0.0))),
        )
        words = [cast("bytes", word).decode() for word in asked.all("sampling_param_stop")]
        stops = tuple(tuple(self._tokenizer.encode(word, add_special_tokens=False).ids) for word in words)
        log_probs = bool(asked.one("return_cumulative_logprob", default=False))
        ask = Ask(prompt, wanted, end_id=self._end, stop_words=stops, sampling=sampling, log_probs=log_probs)
        # The third position is lora_request, and streams nothing: forge names the argument.
        ask = self.generate_async(ask, sampling, streaming)
        alone = asked.one("sampling_param_exclude_input_from_output", default=False)
        outputs = ("finish_reason", "stop_reason", "cumulative_logprob")
        told = frozenset(name for name in outputs if asked.one(f"return_{name}", default=False))
        return Exchange(request, ask, self._tokenizer, "" if alone else text, told)


class Adapted(Weights):
    """A checkpoint's weights with an adapter of PEFT's added; ValueError for one that lora_config leaves no room for."""

    def __init__(self, folder: Path, adapter: Path, terms: Mapping[str, object]) -> None:
        super().__init__(folder)
        self._held = load_file(adapter / "adapter_model.safetensors")
        config = read_json(adapter / "adapter_config.json")
        rank, most = cast("int", config["r"]), cast("int", terms.get("max_lora_rank", 64))
        if rank > most:
            raise ValueError(f"LoRA rank {rank} is larger than max_lora_rank {most}")
        enabled = cast("list[str]", terms.get("lora_target_modules", []))
        for name in self._held:
            leaf = name.split(".lora_")[0].rpartition(".")[2]
            if leaf not in {DEFAULT[each] for each in enabled if each in DEFAULT}:
                raise ValueError(f"lora module {leaf} not enabled for this model")
        self._scale = cast("float", config["lora_alpha"]) / rank

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return widened(self.stored(name))

    def stored(self, name: str) -> NDArray[np.generic]:
        held = super().stored(name)
        a, b = (self._held.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight") for side in "AB")
        return held if a is None or b is None else widened(held) + (b * np.float32(self._scale)) @ a


class AutoConfig:
    """What Triton hands to auto_complete_config, as far as it is used here."""

    def set_max_batch_size(self, size: int) -> None: ...

    def set_model_transaction_policy(self, policy: Mapping[str, bool]) -> None: ...


class Asked:
    """A request's tensors by name."""

    def __init__(self, request: pb_utils.InferenceRequest) -> None:
        self._tensors: dict[str, NDArray[np.generic]] = {each.name(): each.as_numpy() for each in request.inputs()}

    def dimensions(self, name: str) -> int:
        found = self._tensors.get(name)
        return 0 if found is None else found.ndim

    def all(self, name: str) -> list[object]:
        found = self._tensors.get(name)
        return [] if found is None else cast("list[object]", found.reshape(-1).tolist())

    def one(self, name: str, *, default: object) -> object:
        found = self.all(name)
        return found[0] if found else default
