"""Types of the part of vLLM that forge's engine process uses (as read from vllm 0.32)."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import NotRequired, TypedDict

from .logprobs import Logprob
from .lora.request import LoRARequest
from .sampling_params import SamplingParams as SamplingParams

__version__: str

class TextPrompt(TypedDict):
    prompt: str
    multi_modal_data: NotRequired[Mapping[str, object]]

class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: Sequence[dict[int, Logprob]] | None
    finish_reason: str | None

class RequestOutput:
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]
    finished: bool

class AsyncEngineArgs:
    def __init__(self, **arguments: object) -> None: ...

class AsyncLLMEngine:
    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs) -> AsyncLLMEngine: ...
    def generate(
        self,
        prompt: str | TextPrompt,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
    ) -> AsyncGenerator[RequestOutput]: ...
    @property
    def errored(self) -> bool: ...
    @property
    def dead_error(self) -> BaseException: ...
    async def reset_mm_cache(self) -> None: ...
    def shutdown(self) -> None: ...
