"""What forge's engine process uses of vLLM, in miniature: it counts instead of speaking, and a child of its own keeps it alive.

Laid out as a package called ``vllm`` by ``vllm_kit``. Names, types and what goes wrong are vllm 0.32's.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from .logprobs import Logprob
from .sampling_params import RequestOutputKind, SamplingParams

__version__ = "0.32.0"
_KNOWN = {"model", "dtype", "max_model_len", "max_num_seqs", "enforce_eager", "kv_cache_memory_bytes", "enable_log_requests"}
_STEP = 0.01


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool


@dataclass
class AsyncEngineArgs:
    given: dict[str, object] = field(default_factory=dict[str, object])

    def __init__(self, **given: object) -> None:
        for name in given:
            if name not in _KNOWN:
                raise TypeError(f"AsyncEngineArgs.__init__() got an unexpected keyword argument {name!r}")
        self.given = given


UNSENDABLE = "half a pair"
"""A prompt that is answered with a text that UTF-8 has no bytes for."""


class AsyncLLMEngine:
    def __init__(self, args: AsyncEngineArgs) -> None:
        if not (Path(str(args.given["model"])) / "config.json").is_file():
            raise ValueError(f"Invalid repository ID or local directory specified: {args.given['model']!r}")
        # A worker whose environment says nothing of whose it is: vLLM's overwrite theirs with their names.
        self._worker = subprocess.Popen((sys.executable, "-c", "import time; time.sleep(10**6)"), env={})
        self._region = SharedMemory(create=True, size=1024)
        print(f"INFO worker {self._worker.pid}", flush=True)

    @classmethod
    def from_engine_args(cls, args: AsyncEngineArgs) -> "AsyncLLMEngine":
        return cls(args)

    @property
    def errored(self) -> bool:
        return self._worker.poll() is not None

    @property
    def dead_error(self) -> BaseException:
        return RuntimeError("EngineCore encountered an issue.")

    def shutdown(self) -> None:
        self._worker.kill()
        self._worker.wait()

    async def generate(self, prompt: str, params: SamplingParams, request_id: str) -> AsyncGenerator[RequestOutput, None]:
        """Counts from 0: token N is " N"; each of ``n`` sequences speaks for itself, the second beginning at 1000.

        It counts on whether or not anybody listens, and who comes late hears at once what was said meanwhile: vLLM's
        RequestOutputCollector does the same.
        """
        ids, waiting = list(range(len(prompt.split()))), _Waiting()
        counting = asyncio.create_task(self._count(prompt, params, waiting))
        counting.add_done_callback(lambda _: waiting.heard.set())
        try:
            finished = False
            while not finished:
                await waiting.heard.wait()
                if counting.done() and (error := counting.exception()):
                    raise error
                waiting.heard.clear()
                if params.output_kind is RequestOutputKind.DELTA or waiting.finished:
                    finished = waiting.finished
                    yield RequestOutput(ids, waiting.take(), finished)
        except asyncio.CancelledError:
            counting.cancel()
            print(f"INFO Request {request_id} aborted.", flush=True)
            raise

    async def _count(self, prompt: str, params: SamplingParams, waiting: "_Waiting") -> None:
        for step in range(params.max_tokens):
            await asyncio.sleep(_STEP)
            if self.errored:
                raise self.dead_error
            last = step == params.max_tokens - 1
            for index in range(params.n):
                new = _said(index, index * 1000 + step, params, last=last)
                waiting.add(replace(new, text="\ud800") if prompt == UNSENDABLE else new)
            waiting.finished = last


class _Waiting:
    """What was said of each sequence and not heard yet."""

    def __init__(self) -> None:
        self.outputs: dict[int, CompletionOutput] = {}
        self.heard, self.finished = asyncio.Event(), False

    def add(self, new: CompletionOutput) -> None:
        if new.index in self.outputs:
            _add(self.outputs[new.index], new)
        else:
            self.outputs[new.index] = new
        self.heard.set()

    def take(self) -> list[CompletionOutput]:
        outputs, self.outputs = list(self.outputs.values()), {}
        return outputs


def _said(index: int, token: int, params: SamplingParams, *, last: bool) -> CompletionOutput:
    likely = None if params.logprobs is None else [{token: Logprob(-0.5, 1, f" {token}"), 7: Logprob(-9.0, 2, " x")}]
    text = f" {token}"
    cumulative = None if likely is None else -0.5 * (token % 1000 + 1)
    return CompletionOutput(index, text, [token], cumulative, likely, "length" if last else None)


def _add(output: CompletionOutput, new: CompletionOutput) -> None:
    output.text, output.token_ids, output.finish_reason = (
        output.text + new.text,
        output.token_ids + new.token_ids,
        new.finish_reason,
    )
    if new.logprobs is not None:
        output.logprobs = [*(output.logprobs or []), *new.logprobs]
        output.cumulative_logprob = new.cumulative_logprob
