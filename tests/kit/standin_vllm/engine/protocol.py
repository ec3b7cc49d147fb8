"""vllm.engine.protocol, as far as it is used."""


class EngineClient:
    """What speaks to an engine."""
