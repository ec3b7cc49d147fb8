"""``sampling_parameters`` of a request as vLLM's SamplingParams. Runs in the engine's process, beside vLLM."""

import difflib
import json
from collections.abc import Mapping
from typing import cast

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

_OURS = {"output_kind", "skip_clone", "output_text_buffer_length"}
"""What this backend sets itself, or what is no parameter though it looks like one."""
_TEXTS = {"stop"}
"""Words whose value may be a text as it is: the text "1" does not mean the number."""
_STRUCTURED = "structured_outputs"
_BIAS = "logit_bias"


def known() -> frozenset[str]:
    """The names that this vLLM takes."""
    return frozenset(name for name in SamplingParams.__struct_fields__ if not name.startswith("_") and name not in _OURS)


def sampling_params(words: Mapping[str, object], *, stream: bool) -> SamplingParams:
    """SamplingParams of ``words``; ValueError for a name that vLLM does not know, or a value that it refuses.

    A value may be a text, as in Triton's own vLLM backend, whose request parameters can be nothing else: "0.5", "true".
    """
    names = known()
    for name in words:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            raise ValueError(f"vLLM has no sampling parameter {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    given = {name: value if name in _TEXTS else _value(value) for name, value in words.items()}
    if given.get(_STRUCTURED) is not None:
        given[_STRUCTURED] = _structured(given[_STRUCTURED])
    if given.get(_BIAS) is not None:
        given[_BIAS] = _bias(given[_BIAS])
    kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
    try:
        return SamplingParams(**given, output_kind=kind)
    except (TypeError, ValueError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error


def _value(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value.lower() if value in {"True", "False", "None"} else value)
    except ValueError:
        return value


def _structured(given: object) -> StructuredOutputsParams:
    if not isinstance(given, dict):
        raise ValueError(f"{_STRUCTURED} is {given!r}; an object is needed")  # noqa: TRY004  # the fault of a request
    try:
        return StructuredOutputsParams(**cast("dict[str, object]", given))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_STRUCTURED}: {error}") from error


def _bias(given: object) -> dict[int, float]:
    """Amounts by token, whose ids JSON has as texts."""
    try:
        return {int(token): float(amount) for token, amount in cast("dict[str, float]", given).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{_BIAS} is {given!r}; an object of token ids and numbers is needed") from error
