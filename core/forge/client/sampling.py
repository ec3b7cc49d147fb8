"""How an answer's tokens are picked: from what a person says of it to what TensorRT-LLM has to be told, for every client alike.

TensorRT-LLM takes the likeliest token where neither top_k nor top_p is stated, whatever the temperature (samplingLayer: k 0 and
p 0 are k 1); its PyTorch samplers up to 1.0 look at top_p first, then at top_k, and not at the temperature.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from forge.client.types import Request

_SEED_BITS = 63
"""Seeds are signed in some versions."""


def samples(request: Request) -> bool:
    """Whether tokens are drawn: a temperature above 0, a top_k, a top_p, a min_p, a seed or several answers ask for that, and
    neither temperature 0 nor top_k 1 forbids it. Beam search draws nothing."""
    if (request.beam_width or 1) > 1 or _likeliest(request):
        return False
    said = (request.temperature, request.top_k, request.top_p, request.min_p, request.seed)
    return any(value is not None for value in said) or (request.n or 1) > 1


def meant(request: Request) -> Request:
    """``request`` with the top_k and top_p that stand for what it says; as it is where it leaves the choice to the server."""
    if (request.beam_width or 1) > 1:
        return request
    if _likeliest(request):
        return replace(request, top_k=1, top_p=None)
    if not samples(request):
        return request
    top_k = request.top_k or 0
    return replace(request, top_k=top_k, top_p=request.top_p if top_k or request.top_p is not None else 1.0)


def over(usual: Request, said: Mapping[str, object]) -> Request:
    """``usual``, what a recipe asks for, with what a caller said over it; None is not said.

    A recipe's word for the likeliest token does not outlive a caller who asks for draws: neither its top_k 1 a temperature, nor
    its temperature 0 a top_k, a top_p or a min_p.
    """
    words: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    request = replace(usual, **words)
    if words.get("temperature") and "top_k" not in words and usual.top_k == 1:
        request = replace(request, top_k=None)
    narrows = words.get("top_k", 1) != 1 or words.get("top_p", 1.0) < 1 or words.get("min_p", 0) > 0
    if narrows and "temperature" not in words and usual.temperature == 0:
        request = replace(request, temperature=None)
    return request


def seeded(request: Request, seed: int | None = None) -> Request:
    """``request`` with ``seed``, where it draws tokens; without one it keeps its own or gets a new one.

    A server that is told none takes the same each time.
    """
    if not samples(request) or (seed is None and request.seed is not None):
        return request
    return replace(request, seed=secrets.randbits(_SEED_BITS) if seed is None else seed)


def _likeliest(request: Request) -> bool:
    return request.top_k == 1 or request.temperature == 0 or request.top_p == 0
