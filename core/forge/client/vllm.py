"""``sampling_parameters`` of a vLLM model: one text of JSON for what other models have inputs of their own for. Pure."""

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from forge.client.guide import Guide, GuideType
from forge.client.sampling import samples
from forge.client.types import Alternative, Request
from forge.errors import InferenceError
from forge.schema.values import Scalar

SAMPLING = "sampling_parameters"
IMAGE = "embedding_request"
"""Input by which a model of the backend in Triton's images is told from one of forge's own."""
UNNAMED = "'NoneType' object has no attribute 'lora_name'"
"""What that backend answers to sampling parameters that its vLLM refuses; why is in its log alone (up to 26.01)."""
NAMED = "its vLLM refuses a name or a value in sampling_parameters: `forge logs` says which (TritonSamplingParams)"
_STRUCTURED, _GUIDED = "structured_outputs", "guided_decoding"
"""What vLLM calls it from 0.11 on, and what it called it from 0.6.3 to 0.10: Triton's backend changed with 25.11."""
_FIRST, _RENAMED = (0, 6, 3), (0, 11)
_SAME = (
    "max_tokens",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "n",
)
"""Words that vLLM calls as Request does."""
WORDS = frozenset({*_SAME, "temperature", "stop", "bad", "lora", "top_log_probs", "logit_bias_ids", "logit_bias_values"})
"""Every word of Request that goes in there."""


def sampling(request: Request, *, image: bool = False, version: str = "") -> str:
    """What ``request`` says of how its tokens are picked, and what was stated as the input itself over it.

    vLLM draws where nobody says otherwise; forge takes the likeliest token there, as TensorRT-LLM does.

    The backend in Triton's ``image`` takes structured outputs as a text of JSON, which forge's does too. It mixes several
    answers up: a step of vLLM (0.8 on) brings one of them with its index, and the backend goes by its place (up to 26.01).
    ``version`` is the image's vLLM, where that is known: a guide has other words in older ones.
    """
    words: dict[str, object] = {word: value for word in _SAME if (value := getattr(request, word)) is not None}
    if request.top_p == 0:
        del words["top_p"]  # it means the likeliest, and vLLM wants more than 0
    if not samples(request):
        words["temperature"] = 0
    elif request.temperature is not None:
        words["temperature"] = request.temperature
    if stop := (*request.stop, *request.ends):
        words["stop"] = stop
    if request.bad:
        words["bad_words"] = request.bad
    if request.logit_bias:
        words["logit_bias"] = request.logit_bias  # its tokens become texts in JSON
    if request.lora:
        words["lora_name"] = request.lora
    if request.return_log_probs or request.top_log_probs:
        words["logprobs"] = request.top_log_probs or 0  # 0: those of the tokens that were picked
    words |= _guided(request, version) | _given(request)
    words |= {name: json.dumps(said) for name in (_STRUCTURED, _GUIDED) if isinstance(said := words.get(name), dict)}
    if image:
        _require_one(words.get("n"), request.model)
        _require_no_bias(words, request.model)
    return json.dumps(words)


def _require_one(n: object, model: str) -> None:
    if n not in (None, 1, "1"):
        what = f"n is {n}, and the vLLM backend of Triton's images mixes several answers up"
        hint = 'ask as often as answers are wanted; or serve it with runtime.executor = "local"'
        raise InferenceError(what, where=model, hint=hint)


def _require_no_bias(words: Mapping[str, object], model: str) -> None:
    """That backend hands JSON's names on to vLLM's SamplingParams, where tokens have to be numbers (up to 26.01)."""
    if "logit_bias" in words:
        what = "the vLLM backend of Triton's images takes no logit_bias: it makes texts of the tokens"
        raise InferenceError(what, where=model, hint='serve it with runtime.executor = "local"')


def places(text: str) -> tuple[tuple[Alternative, ...], ...]:
    """The tokens that one element of ``logprobs`` tells of, place by place, the one that was picked first; none where nobody
    asked for them. An end token is among them, as it is among the tokens that the backend counts.

    A position is an object: token id -> {"logprob", "rank", "decoded_token"}, the picked one first (vLLM's LogprobsProcessor).
    ValueError where the text is none of this.
    """
    try:
        said = cast("list[dict[str, dict[str, Any]]] | None", json.loads(text or "null"))
        return tuple(
            tuple(
                Alternative(str(each.get("decoded_token") or ""), float(each["logprob"]), int(token))
                for token, each in place.items()
            )
            for place in said or ()
            if place
        )
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError) as error:
        raise ValueError("its logprobs are not as vLLM writes them") from error


def _guided(request: Request, version: str) -> dict[str, object]:
    guide = request.guide
    if guide is None:
        return {}
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers and numbers < _FIRST:
        what = f"the model's vLLM {version} cannot hold its answer to JSON, a schema or a regular expression"
        raise InferenceError(what, where=request.model, hint="images of Triton's from 25.01 on can")
    return {_GUIDED if numbers and numbers < _RENAMED else _STRUCTURED: _words(guide)}


def _words(guide: Guide) -> dict[str, object]:
    match guide.type:
        case GuideType.JSON:
            return {"json_object": True}
        case GuideType.JSON_SCHEMA:
            return {"json": json.loads(guide.text)}
        case GuideType.REGEX:
            return {"regex": guide.text}


def _given(request: Request) -> dict[str, object]:
    stated: Scalar | tuple[Scalar, ...] | None = request.inputs.get(SAMPLING)
    if stated is None:
        return {}
    try:
        found = json.loads(str(stated))
    except (ValueError, RecursionError) as error:
        raise InferenceError(f"{SAMPLING} is no JSON: {error}", where=request.model) from error
    if not isinstance(found, dict):
        raise InferenceError(f"{SAMPLING} must be a JSON object, not {stated!r}", where=request.model)
    return cast("dict[str, object]", found)
