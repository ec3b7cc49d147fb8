"""A stand-in for what forge's plugin imports of AIPerf, so that it runs in this Python: the real one has an environment of its
own. ``aiperf_checks`` runs on both, and so holds this to the original.
"""

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import forge.bench.aiperf

PLUGIN = Path(forge.bench.aiperf.__file__).parent / "plugin" / "endpoint.py"


@dataclass
class ExtractedPayload:
    texts: list[str]
    pretokenised_token_count: int = 0


@dataclass
class TextResponseData:
    text: str


@dataclass
class ParsedResponse:
    perf_ns: int
    data: TextResponseData
    usage: dict[str, int] | None = None


@dataclass
class TextResponse:
    """One answer, or one event of a stream, as it came."""

    perf_ns: int
    text: str

    def get_json(self) -> Any:
        """None for what is no JSON."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None


@dataclass
class RequestRecord:
    responses: list[TextResponse]
    request_info: Any = None
    _parsed_responses_cache: list[ParsedResponse] | None = field(default=None, init=False)


class BaseEndpoint:
    """Parses what is heard once, without what the endpoint passes over."""

    def __init__(self, model_endpoint: Any) -> None:
        self.model_endpoint = model_endpoint

    def parse_response(self, response: TextResponse) -> ParsedResponse | None:
        raise NotImplementedError

    def extract_response_data(self, record: RequestRecord) -> list[ParsedResponse]:
        parsed = [found for response in record.responses if (found := self.parse_response(response))]
        record._parsed_responses_cache = parsed  # pyright: ignore[reportPrivateUsage]  # as AIPerf does
        return parsed


def endpoint(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """forge's plugin over the stand-in, which is ``aiperf`` in this process until the test ends."""
    models = ModuleType("aiperf.common.models")
    for each in (ExtractedPayload, ParsedResponse, RequestRecord, TextResponse):
        setattr(models, each.__name__, each)
    for name in ("InferenceServerResponse", "RequestInfo"):
        setattr(models, name, object)
    data, base = ModuleType("aiperf.common.models.record_models"), ModuleType("aiperf.endpoints.base_endpoint")
    setattr(data, "TextResponseData", TextResponseData)  # noqa: B010  # no checker knows the module's names
    setattr(base, "BaseEndpoint", BaseEndpoint)  # noqa: B010
    for module in (models, data, base):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("aiperf", "aiperf.common", "aiperf.endpoints"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    spec = importlib.util.spec_from_file_location("forge_aiperf_endpoint", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
