"""Requests and answers of language models as KServe's tensors: pure, shared by the clients with and without asyncio.

Names and types come from what the server says of the model, not from memory: TensorRT-LLM 0.20 renamed ``random_seed`` and
``min_length``; the ensemble, bls, ``tensorrt_llm``, llmapi and vLLM models differ; and what a model has no input for must not
be ignored in silence.
"""

import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache

from msgspec import Struct

from forge.client.sampling import meant, seeded
from forge.client.stops import barred, spellings
from forge.client.types import ModelMetadata, Request, TensorMetadata
from forge.client.vllm import IMAGE, SAMPLING, WORDS, sampling
from forge.errors import InferenceError
from forge.files import texts
from forge.schema import sight
from forge.schema.values import RuntimeKind, Scalar

CODES = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""KServe's datatypes in struct's letters."""
LLMAPI = "sampling_param_"
GUIDE_TYPE, _GUIDE = "guided_decoding_guide_type", "guided_decoding_guide"
"""Inputs of TensorRT-LLM's models from 0.19 on."""
LOGIT_BIAS = "logit_bias_ids"
"""Input of forge's own bls. NVIDIA's ``embedding_bias_words`` are texts: each token that one is cut into is biased, and the one
that their tokenizer puts before every text."""
_TEXTS = ("prompt", "stop", "bad")
"""Words that are text: not for a model that takes ids."""
_OPTIONAL = (
    "stream",
    "stop",
    "exclude_input_in_output",
    "return_perf_metrics",
    "return_finish_reason",
    "return_num_input_tokens",
    "return_num_output_tokens",
)
"""Words that a model without such an input obeys anyway, or that only ask for more to be told."""
_ALIKE = (
    *("temperature", "top_k", "top_p", "min_p", "seed", "beam_width", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "min_tokens", "n", "length_penalty", "early_stopping", "num_draft_tokens"),
    *("beam_search_diversity_rate", "top_p_min", "top_p_decay", "top_p_reset_ids", "end_id", "pad_id"),
)
"""Words that are called here as they are in Request."""
_SWITCHES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

Values = Sequence[Scalar]


class Input(Struct, frozen=True):
    """One tensor to send; ``raw`` is its content in the protocol's layout: little-endian, strings with their length."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes


def drawing(request: Request, model: ModelMetadata) -> Request:
    """``request`` with a seed where it draws tokens, says none, and ``model`` has an input for one."""
    return seeded(request) if offers("seed", model) else request


def offers(word: str, model: ModelMetadata) -> bool:
    """Whether ``model`` has an input for a word of Request."""
    return bool(_offered_name(word, model.inputs))


def sightless(model: ModelMetadata) -> str:
    """Why ``model``, which has no input for images that forge fills, is shown none."""
    return sight.blind(RuntimeKind.LLMAPI if f"{LLMAPI}max_tokens" in model.inputs else RuntimeKind.TWIN)


def inputs_of(request: Request, model: ModelMetadata) -> tuple[Input, ...]:
    """The tensors that ask ``model`` for ``request``; InferenceError for what it has no input for, and for wrong values."""
    asked = tuple(_input(model.inputs[name], values, request.model) for name, values in _asked(request, model).items())
    task = request.lora_task
    return (*asked, *(Input(*each) for each in task.arrays())) if task and task.sent else asked


def body(request: Request, model: ModelMetadata) -> dict[str, Scalar | list[Scalar]]:
    """The same as one object of JSON, for Triton's generate extension."""
    return {name: _plain(values) for name, values in _asked(request, model).items()}


def _asked(request: Request, model: ModelMetadata) -> dict[str, Values]:
    """An input's name -> its values; InferenceError for what the model has no input for."""
    offered = model.inputs
    _refuse_impossible(request, model)
    wanted = _words(request)
    named = {word: _offered_name(word, offered) for word in wanted}
    refused = [word for word, name in named.items() if not name and word not in _OPTIONAL and not _added(word, request)]
    refused += [name for name in request.inputs if name not in offered]
    if refused:
        raise InferenceError(
            f"the model has no input for {', '.join(refused)}",
            where=request.model,
            hint=f"leave that out; it takes: {', '.join(sorted(offered))}",
        )
    asked = {name: wanted[word] for word, name in named.items() if name}
    asked |= {name: value if isinstance(value, tuple) else (value,) for name, value in request.inputs.items()}
    return asked | _folded(request, model)


def _folded(request: Request, model: ModelMetadata) -> dict[str, Values]:
    """What goes to a vLLM model otherwise: the sampling in one input, and a switch for each output."""
    if SAMPLING not in model.inputs:
        return {}
    switches = ("return_logprobs", "return_cumulative_logprob") if request.return_log_probs or request.top_log_probs else ()
    return {
        SAMPLING: (sampling(request, image=IMAGE in model.inputs, version=model.vllm),),
        **{name: (True,) for name in switches if name in model.inputs},
    }


def stated(request: Request, model: ModelMetadata) -> dict[str, Scalar | list[Scalar]]:
    """What ``request`` says besides its prompt and its length, as ``body`` does, without what ``model`` has no input for."""
    if SAMPLING in model.inputs:
        return {SAMPLING: sampling(request, image=IMAGE in model.inputs, version=model.vllm)}
    named = ((_offered_name(word, model.inputs), values) for word, values in _words(request).items())
    left_out = {_offered_name(word, model.inputs) for word in ("prompt", "max_tokens")} | {""}
    return {name: _plain(values) for name, values in named if name not in left_out}


def _plain(values: Values) -> Scalar | list[Scalar]:
    return values[0] if len(values) == 1 else list(values)


def _refuse_impossible(request: Request, model: ModelMetadata) -> None:
    if request.stream and not model.decoupled:
        raise InferenceError(
            "the model answers once and cannot stream",
            where=request.model,
            hint="ask with --no-stream, or build it with serve.stream = true",
        )
    if request.guide and not offers(GUIDE_TYPE, model):
        what = "the model cannot hold its answer to JSON, a schema or a regular expression: it has no input for that"
        raise InferenceError(what, where=request.model, hint="models of the runtime vllm do, and engines from 0.19 on")
    if request.images and not offers("images", model):
        what = "the model takes no images: it has no input for them"
        raise InferenceError(what, where=request.model, hint=sightless(model))
    if request.tokens:
        if "input_ids" not in model.inputs:
            raise InferenceError(
                "the model takes text and no token ids", where=request.model, hint="ask the tensorrt_llm model with ids"
            )
        if given := [word for word in _TEXTS if getattr(request, word)]:
            raise InferenceError(f"a prompt of token ids cannot go with {', '.join(given)}", where=request.model)
    elif "text_input" not in model.inputs:
        raise InferenceError(
            f"the model takes no text (its inputs: {', '.join(sorted(model.inputs))})",
            where=request.model,
            hint="ask the bls model (tensorrt_llm_bls) or the ensemble",
        )


def _words(request: Request) -> dict[str, Values]:
    """What is asked for, as it is meant (``forge.client.sampling``); nothing stands for what is left to the server."""
    request = meant(request)
    single: dict[str, Scalar | None] = {
        "prompt": None if request.tokens else request.prompt,
        "input_lengths": len(request.tokens) or None,
        "max_tokens": request.max_tokens,
        "stream": request.stream,
        "exclude_input_in_output": True,
        "return_finish_reason": True,
    }
    single |= {word: getattr(request, word) for word in _ALIKE}
    single["lora"] = (request.lora if request.lora_task is None else "") or None
    single |= request.lora_task.words(request.lora) if request.lora_task else {}
    single["return_log_probs"] = request.return_log_probs or bool(request.top_log_probs) or None
    single["top_log_probs"] = request.top_log_probs or None
    single["return_perf_metrics"] = request.return_perf_metrics or None
    single["return_num_input_tokens"] = single["return_num_output_tokens"] = request.return_token_counts or None
    if request.guide:
        single[GUIDE_TYPE], single[_GUIDE] = request.guide.type, request.guide.text or None
    words: dict[str, Values] = {word: (value,) for word, value in single.items() if value is not None}
    ends = request.ends if request.end_id is None and not request.tokens else ()
    several: dict[str, Values] = {
        LOGIT_BIAS: tuple(request.logit_bias),
        "logit_bias_values": tuple(request.logit_bias.values()),
        "tokens": request.tokens,
        "stop": (*spellings(request.stop), *ends),
        "bad": barred(request.bad),
        "images": tuple(b64encode(image).decode() for image in request.images),
    }
    return words | {word: values for word, values in several.items() if values}


def _added(word: str, request: Request) -> bool:
    """Whether the caller said nothing of ``word``: a model without an input for it is asked all the same."""
    return word in ("top_k", "top_p") and getattr(request, word) is None


@cache
def _renamed() -> dict[str, tuple[str, ...]]:
    """A word of Request -> the inputs that stand for it, where these have other names."""
    return texts.shipped("forge.client", "inputs.toml", dict[str, tuple[str, ...]])


def _offered_name(word: str, offered: Mapping[str, TensorMetadata]) -> str:
    names = _renamed().get(word, (word,))
    folded = (SAMPLING,) if word in WORDS or word in (GUIDE_TYPE, _GUIDE) else ()
    return next((name for name in (*names, f"{LLMAPI}{word}", *folded) if name in offered), "")


def _input(tensor: TensorMetadata, values: Values, model: str) -> Input:
    shape = (*(1 for _ in tensor.shape[1:]), len(values))
    try:
        return Input(tensor.name, tensor.datatype, shape, _raw(tensor.datatype, values))
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise InferenceError(
            f"{tensor.name} {', '.join(map(str, values))} does not fit {tensor.datatype} ({error})", where=model
        ) from error


def _raw(datatype: str, values: Values) -> bytes:
    """Values in the protocol's layout."""
    if datatype == "BYTES":
        words = [str(value).encode() for value in values]
        return b"".join(struct.pack("<I", len(word)) + word for word in words)
    code = CODES[datatype]
    return struct.pack(f"<{len(values)}{code}", *(_number(code, value) for value in values))


def _number(code: str, value: Scalar) -> int | float | bool:
    if code == "?" and isinstance(value, str):
        return _SWITCHES[value.lower()]
    if code in "efd":
        return float(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{value} is not whole")
    return int(value)
