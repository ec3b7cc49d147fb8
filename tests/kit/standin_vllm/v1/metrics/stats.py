"""vllm.v1.metrics.stats, as far as it is used."""


class IterationStats:
    pass


class MultiModalCacheStats:
    pass


class SchedulerStats:
    pass
