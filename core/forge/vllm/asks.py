"""What one request asks for, read from its tensors: those of Triton's own vLLM backend, by its names and types."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]

RETURNED = {
    "return_finish_reason": "finish_reason",
    "return_cumulative_logprob": "cumulative_logprob",
    "return_logprobs": "logprobs",
    "return_num_input_tokens": "num_input_tokens",
    "return_num_output_tokens": "num_output_tokens",
}
"""Input that asks for an output -> that output; ``text_output`` always comes."""
_NOT_HERE = {"embedding_request": "it makes no embeddings"}


class RefusedError(Exception):
    """A request that cannot be served; says why."""


@dataclass(frozen=True)
class Ask:
    """``images`` are base64 of their files.

    ``sampling`` are the words of ``sampling_parameters``; ``answers`` is how many it asks for; ``echo`` puts the prompt
    before each of them; ``returned`` are the outputs that it wants beside the text; ``lora`` is the adapter to be asked with,
    empty for none."""

    prompt: str
    stream: bool
    sampling: Mapping[str, object]
    answers: int
    echo: bool
    returned: frozenset[str]
    lora: str = ""
    images: tuple[str, ...] = ()


def read(arrays: Arrays, parameters: str, adapters: Sequence[str] = ()) -> Ask:
    """An Ask of a request's tensors; ``parameters`` is the JSON that stands in when it has no ``sampling_parameters``.

    ``adapters`` are the names of those that the model has.
    """
    for name, why in _NOT_HERE.items():
        if name in arrays:
            raise RefusedError(f"{name}: {why} (forge's vllm backend)")
    if "text_input" not in arrays:
        raise RefusedError("text_input is missing")
    stream = _flag(arrays, "stream", default=False)
    echo = not _flag(arrays, "exclude_input_in_output", default=stream)
    if stream and echo:
        raise RefusedError("exclude_input_in_output must not be false when streaming")
    sampling = _sampling(_text(arrays, "sampling_parameters") if "sampling_parameters" in arrays else parameters)
    lora = _lora(sampling.pop("lora_name", None), adapters)
    returned = frozenset(output for name, output in RETURNED.items() if _flag(arrays, name, default=False))
    images = _images(arrays["image"]) if "image" in arrays else ()
    return Ask(_text(arrays, "text_input"), stream, sampling, _answers(sampling), echo, returned, lora, images)


def _sampling(text: str) -> dict[str, object]:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise RefusedError(f"sampling_parameters is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise RefusedError(f"sampling_parameters must be a JSON object, not {text!r}")
    return cast("dict[str, object]", found)


def _lora(name: object, adapters: Sequence[str]) -> str:
    if name is None or name in adapters:
        return str(name or "")
    if not adapters:
        raise RefusedError(f"lora_name is {name!r}, and this model has no LoRA adapters")
    raise RefusedError(f"lora_name is {name!r}, and this model's LoRA adapters are {', '.join(adapters)}")


def _answers(sampling: Mapping[str, object]) -> int:
    given = sampling.get("n", 1)
    try:
        return int(cast("int", given))
    except (TypeError, ValueError):
        raise RefusedError(f"sampling_parameters: n is {given!r}; a whole number is needed") from None


def _images(array: NDArray[np.generic]) -> tuple[str, ...]:
    try:
        return tuple(cast("bytes", each).decode("ascii") for each in array.reshape(-1))
    except UnicodeDecodeError as error:
        raise RefusedError("image is no base64") from error


def _flag(arrays: Arrays, name: str, *, default: bool) -> bool:
    return bool(_one(arrays, name)) if name in arrays else default


def _text(arrays: Arrays, name: str) -> str:
    value = _one(arrays, name)
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RefusedError(f"{name} is not UTF-8: {error}") from error


def _one(arrays: Arrays, name: str) -> object:
    array = arrays[name]
    if array.size != 1:
        raise RefusedError(f"{name} must hold one value, and holds {array.size}")
    return array.reshape(-1)[0]
