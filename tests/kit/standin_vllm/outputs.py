"""vllm.outputs, as far as it is used."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .logprobs import Logprob


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
    prompt: str = ""


T = TypeVar("T")


@dataclass
class PoolingRequestOutput(Generic[T]):
    request_id: str
    prompt_token_ids: list[int] = field(default_factory=list[int])


class EmbeddingOutput:
    pass


class EmbeddingRequestOutput:
    pass
