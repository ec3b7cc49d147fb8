"""vllm.pooling_params, as far as it is used."""

from dataclasses import dataclass


@dataclass
class PoolingParams:
    task: str | None = None
    dimensions: int | None = None
