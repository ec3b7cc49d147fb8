"""An endpoint of AIPerf: a language model behind Triton's generate extension, asked and heard as forge does.

The form is Triton's (server/docs/protocol/extension_generate.md): one JSON object with the model's inputs by name; one answer,
or a server-sent event for each response, with the outputs by name. AIPerf counts a prompt's tokens without the special ones
that preprocessing adds, and takes each event's text as new: the settings say what differs.
"""

import os
import time
from pathlib import Path
from typing import Any

from aiperf.common.models import ExtractedPayload, InferenceServerResponse, ParsedResponse, RequestInfo, RequestRecord
from aiperf.common.models.record_models import TextResponseData
from aiperf.endpoints.base_endpoint import BaseEndpoint

SPECIAL = "FORGE_AIPERF_SPECIAL"
"""How many special tokens the model's preprocessing adds to a prompt."""
REPEATED = "FORGE_AIPERF_REPEATED"
"""What each response holds as a whole so far: the ``text``, or ``all``, the counts too; empty where it holds what is new."""

GATE, WARM = "FORGE_AIPERF_GATE", "FORGE_AIPERF_WARM"
"""A folder, and how many requests the warm-up has. Each leaves its name there; the last is held until forge has laid ``open``
there, which looks at the server from then on."""
_PATIENCE = 10.0


class TritonGenerateEndpoint(BaseEndpoint):
    """``text_input`` and ``max_tokens`` come from the turn; what else a request states, its ``extra`` holds."""

    def format_payload(self, request_info: RequestInfo) -> dict[str, Any]:
        if len(request_info.turns) != 1:
            raise ValueError("a request to Triton's generate extension has one turn")
        turn = request_info.turns[0]
        payload: dict[str, Any] = {"text_input": "".join(each for text in turn.texts for each in text.contents)}
        if turn.max_tokens is not None:
            payload["max_tokens"] = turn.max_tokens
        return payload | dict(self.model_endpoint.endpoint.extra or {}) | (turn.extra_body or {})

    def extract_payload_inputs(self, payload: dict[str, Any]) -> ExtractedPayload:
        special = int(os.environ.get(SPECIAL, "0"))
        return ExtractedPayload(texts=[str(payload.get("text_input", ""))], pretokenised_token_count=special)

    def parse_response(self, response: InferenceServerResponse) -> ParsedResponse | None:
        """The first sequence's text and counts; nothing for another sequence, or for an end that says nothing more."""
        told = response.get_json()
        if not isinstance(told, dict) or _one(told.get("sequence_index", 0)):
            return None
        text, tokens = str(_one(told.get("text_output", ""), "")), int(_one(told.get("num_output_tokens", 0)))
        if not text and not tokens:
            return None
        usage = {"completion_tokens": tokens} if tokens else {}
        if inputs := int(_one(told.get("num_input_tokens", 0))):
            usage["prompt_tokens"] = inputs
        return ParsedResponse(perf_ns=response.perf_ns, data=TextResponseData(text=text), usage=usage or None)

    def extract_response_data(self, record: RequestRecord) -> list[ParsedResponse]:
        """Texts as what is new in each, counts as how many so far: AIPerf joins the ones and takes the last of the others."""
        if record._parsed_responses_cache is not None:  # heard already: what follows must not happen twice
            return record._parsed_responses_cache
        _pass(record)
        parsed = super().extract_response_data(record)
        said, tokens, repeated = "", 0, os.environ.get(REPEATED, "")
        for each in parsed:
            if repeated:
                text = each.data.text
                each.data.text, said = text.removeprefix(said), text
            if each.usage is not None and "completion_tokens" in each.usage:
                tokens = each.usage["completion_tokens"] + (0 if repeated == "all" else tokens)
                each.usage["completion_tokens"] = tokens
        return parsed


def _pass(record: RequestRecord) -> None:
    """Wait where this is the end of the warm-up: a worker hears an answer before AIPerf counts the request as done, and at that
    moment has no other."""
    gate, name = os.environ.get(GATE), record.request_info.conversation_id if record.request_info else ""
    if not gate or not name.startswith("warm-"):
        return
    try:
        (Path(gate) / name).touch(exist_ok=False)
    except FileExistsError:  # another process hears the same, or the load goes through the data set once more
        return
    deadline = time.monotonic() + _PATIENCE
    if len(list(Path(gate).glob("warm-*"))) == int(os.environ.get(WARM, "0")):
        while not (Path(gate) / "open").exists() and time.monotonic() < deadline:
            time.sleep(0.002)


def _one(value: Any, none: Any = 0) -> Any:
    """An output of several elements comes as a list: its first, or ``none``."""
    return (_one(value[0], none) if value else none) if isinstance(value, list) else value
