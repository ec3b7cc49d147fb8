"""vllm.logprobs, as far as it is used."""

from dataclasses import dataclass


@dataclass
class Logprob:
    logprob: float
    rank: int | None
    decoded_token: str | None
