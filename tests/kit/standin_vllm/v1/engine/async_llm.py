"""vllm.v1.engine.async_llm, as far as it is used."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from ...config import VllmConfig
from ...engine.arg_utils import AsyncEngineArgs
from ...engine.protocol import EngineClient
from ...inputs.data import TextPrompt
from ...logprobs import Logprob
from ...lora.request import LoRARequest
from ...outputs import CompletionOutput, RequestOutput
from ...sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from ...usage.usage_lib import UsageContext
from ..metrics.loggers import StatLoggerFactory
from .exceptions import EngineGenerateError
from .speaker import Speaker

_STEP = 0.01
UNSENDABLE = "half a pair"
"""A prompt that is answered with a text that UTF-8 has no bytes for."""

BRIEF = "yes or no"
"""A prompt whose answer has one token and then the end token, unless ``min_tokens`` or ``ignore_eos`` forbids that."""


class AsyncLLM(EngineClient):
    def __init__(self, config: VllmConfig) -> None:
        self.config = config
        self._speaker = Speaker.of(Path(config.model_config.model))
        self._counting: dict[str, asyncio.Task[None]] = {}
        # A worker whose environment says nothing of whose it is: vLLM's overwrite theirs with their names.
        python = sys.executable or shutil.which("python3") or "python3"
        self._worker = subprocess.Popen((python, "-c", "import time; time.sleep(10**6)"), env={})
        self._region = SharedMemory(create=True, size=1024)
        print(f"INFO worker {self._worker.pid}", flush=True)

    @classmethod
    def from_engine_args(cls, args: AsyncEngineArgs) -> "AsyncLLM":
        return cls(args.create_engine_config(UsageContext.ENGINE_CONTEXT))

    @classmethod
    def from_vllm_config(
        cls,
        vllm_config: VllmConfig,
        usage_context: UsageContext = UsageContext.ENGINE_CONTEXT,
        stat_loggers: Sequence[StatLoggerFactory] | None = None,
        enable_log_requests: bool = False,
        aggregate_engine_logging: bool = False,
        disable_log_stats: bool = False,
    ) -> "AsyncLLM":
        return cls(vllm_config)

    @property
    def errored(self) -> bool:
        return self._worker.poll() is not None

    @property
    def dead_error(self) -> BaseException:
        return RuntimeError("EngineCore encountered an issue.")

    async def check_health(self) -> None:
        if self.errored:
            raise self.dead_error

    async def reset_mm_cache(self) -> None:
        pass

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def abort(self, request_id: str) -> None:
        if counting := self._counting.pop(request_id, None):
            counting.cancel()
        print(f"INFO Request {request_id} aborted.", flush=True)

    def shutdown(self) -> None:
        self._worker.kill()
        self._worker.wait()

    async def generate(
        self,
        prompt: str | TextPrompt,
        sampling_params: SamplingParams,
        request_id: str,
        lora_request: LoRARequest | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Counts from 0: token N is " N"; each of ``n`` sequences speaks for itself, the second beginning at 1000. With an
        adapter it begins at 100, and 100 further on for each next one. With images it begins at their pixels, all together.

        It counts on whether or not anybody listens, and who comes late hears at once what was said meanwhile: vLLM's
        RequestOutputCollector does the same. Where the checkpoint is to speak (speaker.py), its own tokens are said.
        """
        prompt, seen = self._seen(prompt)
        if "NOWHERE" in prompt:
            raise EngineGenerateError from RuntimeError(f"{seen} features for 0 places")
        if "GIVEN UP" in prompt:
            yield RequestOutput([1], [CompletionOutput(0, "", [], None, None, "error")], True, prompt)
            return
        speaker, waiting = self._speaker, _Waiting(sampling_params.output_kind)
        ids = speaker.ids(prompt) if speaker else list(range(len(prompt.split())))
        first = seen + (self._adapted(lora_request) if lora_request else 0)
        if speaker:
            counting = asyncio.create_task(self._speak(speaker, prompt, sampling_params, waiting))
        else:
            counting = asyncio.create_task(self._count(prompt, sampling_params, waiting, first))
        counting.add_done_callback(lambda _: waiting.heard.set())
        self._counting[request_id] = counting
        try:
            finished = False
            while not finished:
                await waiting.heard.wait()
                if counting.cancelled():
                    return
                if counting.done() and (error := counting.exception()):
                    raise error
                waiting.heard.clear()
                finished = waiting.finished
                yield RequestOutput(ids, waiting.take(), finished, prompt)
        except (asyncio.CancelledError, GeneratorExit):
            await self.abort(request_id)
            raise
        finally:
            self._counting.pop(request_id, None)

    def _seen(self, prompt: str | TextPrompt) -> tuple[str, int]:
        """The text, and the pixels of the images beside it; ValueError, as vLLM says it, for a checkpoint that cannot see."""
        if isinstance(prompt, str):
            return prompt, 0
        images = prompt.get("multi_modal_data", {}).get("image", [])
        config = json.loads((Path(self.config.model_config.model) / "config.json").read_text())
        if "vision_config" not in config:
            raise ValueError("At most 0 image(s) may be provided in one prompt.")
        return prompt["prompt"], sum(image.size[0] * image.size[1] for image in images if image.mode == "RGB")

    async def _speak(self, speaker: Speaker, prompt: str, params: SamplingParams, waiting: "_Waiting") -> None:
        for token, log_prob, text, reason in speaker.speak(prompt, params):
            await asyncio.sleep(0)
            waiting.finished = reason is not None
            likely = None if params.logprobs is None else [{token: Logprob(log_prob, 1, text)}]
            waiting.add(CompletionOutput(0, text, [token], None if likely is None else log_prob, likely, reason))

    def _adapted(self, request: LoRARequest) -> int:
        """Its first token; ValueError for an adapter that the engine has no room for."""
        if (config := self.config.lora_config) is None:
            raise ValueError(f"Got lora_request {request} but LoRA is not enabled!")
        rank = json.loads((Path(request.lora_path) / "adapter_config.json").read_text())["r"]
        if rank > config.max_lora_rank:
            raise ValueError(f"LoRA rank {rank} is greater than max_lora_rank {config.max_lora_rank}.")
        return 100 * request.lora_int_id

    async def _count(self, prompt: str, params: SamplingParams, waiting: "_Waiting", first: int) -> None:
        if params.structured_outputs:
            waiting.finished = True
            waiting.add(CompletionOutput(0, _guided(params.structured_outputs), [0], None, None, "stop"))
            return
        most = params.max_tokens or 16
        for step in range(most):
            await asyncio.sleep(_STEP)
            if self.errored:
                raise self.dead_error
            ended = prompt == BRIEF and step + 1 >= params.min_tokens and not params.ignore_eos
            last = ended or step == most - 1
            waiting.finished = last
            for index in range(params.n):
                new = _said(
                    index, first + index * 1000 + step, params, reason=("stop" if ended else "length") if last else None
                )
                waiting.add(replace(new, text="\ud800") if prompt == UNSENDABLE else new)
            if last:
                return


def _guided(guide: StructuredOutputsParams) -> str:
    """In the place of an answer that is held to it: what it was told. A regular expression is read as vLLM reads it first."""
    try:
        re.compile(guide.regex or "")
    except re.error as error:
        raise ValueError(f"Failed to transform regex into a grammar: {error}") from error
    return json.dumps({name: said for name, said in vars(guide).items() if said is not None})


class _Waiting:
    """What was said of each sequence and not heard yet; all of it so far where the kind is CUMULATIVE."""

    def __init__(self, kind: RequestOutputKind) -> None:
        self._kind = kind
        self._outputs: dict[int, CompletionOutput] = {}
        self._whole: dict[int, CompletionOutput] = {}
        self.heard, self.finished = asyncio.Event(), False

    def add(self, new: CompletionOutput) -> None:
        for held in (self._outputs, self._whole):
            held[new.index] = _sum(held[new.index], new) if new.index in held else new
        if self._kind is not RequestOutputKind.FINAL_ONLY or self.finished:
            self.heard.set()

    def take(self) -> list[CompletionOutput]:
        outputs, self._outputs = self._outputs, {}
        return [self._whole[index] if self._kind is RequestOutputKind.CUMULATIVE else each for index, each in outputs.items()]


def _said(index: int, token: int, params: SamplingParams, *, reason: str | None) -> CompletionOutput:
    likely = None if params.logprobs is None else [{token: Logprob(-0.5, 1, f" {token}"), token + 1: Logprob(-9.0, 2, " x")}]
    text = f" {token}"
    cumulative = None if likely is None else -0.5 * (token % 1000 + 1)
    return CompletionOutput(index, text, [token], cumulative, likely, reason)


def _sum(output: CompletionOutput, new: CompletionOutput) -> CompletionOutput:
    return replace(
        new,
        text=output.text + new.text,
        token_ids=output.token_ids + new.token_ids,
        logprobs=None if new.logprobs is None else [*(output.logprobs or []), *new.logprobs],
    )
