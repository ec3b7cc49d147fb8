from enum import Enum

class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2

class StructuredOutputsParams:
    def __init__(self, **arguments: object) -> None: ...

class SamplingParams:
    __struct_fields__: tuple[str, ...]
    def __init__(self, **arguments: object) -> None: ...
