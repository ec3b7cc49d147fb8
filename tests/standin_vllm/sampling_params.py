"""vllm.sampling_params, as far as it is used."""

from dataclasses import dataclass, fields
from enum import Enum


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class StructuredOutputsParams:
    def __init__(self, *, regex: str | None = None) -> None:
        self.regex = regex


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int = 16
    logprobs: int | None = None
    ignore_eos: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    _all_stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be non-negative, got {self.temperature}.")


SamplingParams.__struct_fields__ = tuple(each.name for each in fields(SamplingParams))  # type: ignore[attr-defined]
