"""vllm.v1.engine.exceptions: what went wrong with a request is its cause, and it says nothing itself."""


class EngineGenerateError(Exception):
    pass
