"""``sampling_parameters`` of a vLLM model: one text of JSON for what other models have inputs of their own for. Pure."""

import json
from collections.abc import Mapping
from typing import cast

from forge.client.sampling import samples
from forge.client.types import Request
from forge.errors import InferenceError
from forge.schema.values import Scalar

SAMPLING = "sampling_parameters"
IMAGE = "embedding_request"
"""Input by which a model of the backend in Triton's images is told from one of forge's own."""
UNNAMED = "'NoneType' object has no attribute 'lora_name'"
"""What that backend answers to sampling parameters that its vLLM refuses; why is in its log alone (up to 26.01)."""
NAMED = "its vLLM refuses a name or a value in sampling_parameters: `forge logs` says which (TritonSamplingParams)"
_STRUCTURED = "structured_outputs"
_SAME = (
    "max_tokens",
    "top_k",
    "top_p",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "n",
)
"""Words that vLLM calls as Request does."""
WORDS = frozenset({*_SAME, "temperature", "stop", "bad", "lora"})
"""Every word of Request that goes in there."""


def sampling(request: Request, *, image: bool = False) -> str:
    """What ``request`` says of how its tokens are picked, and what was stated as the input itself over it.

    vLLM draws where nobody says otherwise; forge takes the likeliest token there, as TensorRT-LLM does.

    The backend in Triton's ``image`` takes structured outputs as a text of JSON, which forge's does too. It mixes several
    answers up: a step of vLLM (0.8 on) brings one of them with its index, and the backend goes by its place (up to 26.01).
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
    if request.lora:
        words["lora_name"] = request.lora
    if request.return_log_probs:
        words["logprobs"] = 0  # those of the tokens that were picked
    words |= _given(request)
    if isinstance(words.get(_STRUCTURED), dict):
        words[_STRUCTURED] = json.dumps(words[_STRUCTURED])
    if image and words.get("n") not in (None, 1, "1"):
        what = f"n is {words['n']}, and the vLLM backend of Triton's images mixes several answers up"
        hint = 'ask as often as answers are wanted; or serve it with runtime.executor = "local"'
        raise InferenceError(what, where=request.model, hint=hint)
    return json.dumps(words)


def picked(text: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The ids of the tokens that were picked and the log-probability of each, out of one element of ``logprobs``; none where
    nobody asked for them. An end token is among them, as it is among the tokens that the backend counts.

    A position is an object: token id -> {"logprob", "rank", "decoded_token"}, the picked one first (vLLM's LogprobsProcessor).
    """
    places = cast("list[dict[str, dict[str, float]]] | None", json.loads(text or "null"))
    firsts = [next(iter(place.items())) for place in places or () if place]
    return tuple(int(token) for token, _ in firsts), tuple(said["logprob"] for _, said in firsts)


def _given(request: Request) -> Mapping[str, object]:
    stated: Scalar | tuple[Scalar, ...] | None = request.inputs.get(SAMPLING)
    if stated is None:
        return {}
    try:
        found = json.loads(str(stated))
    except ValueError as error:
        raise InferenceError(f"{SAMPLING} is no JSON: {error}", where=request.model) from error
    if not isinstance(found, dict):
        raise InferenceError(f"{SAMPLING} must be a JSON object, not {stated!r}", where=request.model)
    return cast("dict[str, object]", found)
