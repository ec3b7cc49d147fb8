# What forge's plugin uses of AIPerf 0.13 (src/aiperf/common/models).
from typing import Any

from .record_models import TextResponseData

class Text:
    contents: list[str]

class Turn:
    texts: list[Text]
    max_tokens: int | None
    extra_body: dict[str, Any] | None

class EndpointInfo:
    extra: list[tuple[str, Any]] | dict[str, Any] | None

class ModelEndpointInfo:
    endpoint: EndpointInfo

class RecordContext:
    conversation_id: str

class RequestInfo(RecordContext):
    turns: list[Turn]

class InferenceServerResponse:
    perf_ns: int
    def get_json(self) -> dict[str, Any] | None: ...

class ParsedResponse:
    perf_ns: int
    data: TextResponseData
    usage: dict[str, Any] | None
    def __init__(self, perf_ns: int, data: TextResponseData, usage: dict[str, Any] | None = None) -> None: ...

class RequestRecord:
    request_info: RecordContext | None
    responses: list[InferenceServerResponse]
    _parsed_responses_cache: list[ParsedResponse] | None

class ExtractedPayload:
    def __init__(self, *, texts: list[str], pretokenised_token_count: int = 0) -> None: ...
