"""vllm.v1.metrics.loggers, as far as it is used."""

from collections.abc import Callable

from ...config import VllmConfig


class StatLoggerBase:
    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self.vllm_config, self.engine_index = vllm_config, engine_index


StatLoggerFactory = Callable[[VllmConfig, int], StatLoggerBase]


def build_1_2_5_buckets(max_value: int) -> list[int]:
    """1, 2, 5, 10, ... up to ``max_value``."""
    every = (mantissa * 10**exponent for exponent in range(10) for mantissa in (1, 2, 5))
    return [value for value in every if value <= max_value]
