"""Asks a served model for text.

Names and types come from what the server says of the model, not from memory: TensorRT-LLM 0.20 renamed ``random_seed`` and
``min_length``; the ensemble, bls and llmapi models differ; and what a model has no input for must not be ignored in silence.
"""

import struct
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from forge.adapters.kserve import Connection, InferResponse, Input, TensorMetadata, connect
from forge.errors import InferenceError
from forge.ports import Chunk, Request

_CODES = {
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
_LLMAPI = "sampling_param_"
_RENAMED = {
    "prompt": ("text_input",),
    "seed": ("seed", "random_seed"),
    "min_tokens": ("min_tokens", "min_length"),
    "stop": ("stop_words", f"{_LLMAPI}stop"),
    "bad": ("bad_words",),
    "stream": ("stream", "streaming"),
    "exclude_input_in_output": ("exclude_input_in_output", f"{_LLMAPI}exclude_input_from_output"),
}
"""A word of Request -> the inputs that stand for it, by version; otherwise the word itself."""
_OPTIONAL = ("stream", "exclude_input_in_output")
"""Words that a model without such an input obeys anyway."""

Values = Sequence[str | int | float | bool]


class TritonClient:
    """The Client over gRPC; each request has a connection of its own. ``timeout`` bounds a whole answer, in seconds."""

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout

    def generate(self, address: str, request: Request) -> Generator[Chunk]:
        """Stream the answer; the last chunk is final. Closing the iterator cancels the request at the server.

        InferenceError: no server at ``address`` (host:port), an unknown model, a word that the model has no input for, a stream
        from a model that answers once, and whatever the server refuses.
        """
        with connect(address, self._timeout) as connection:
            offered = {tensor.name: tensor for tensor in connection.metadata(request.model).inputs}
            inputs = _inputs(connection, request, offered)
            responses = connection.stream(request.model, uuid.uuid4().hex, inputs)
            news = _News() if f"{_LLMAPI}max_tokens" in offered else None
            try:
                ended = False
                for response, final in responses:
                    for chunk in _chunks(response, final):
                        yield news.of(chunk) if news else chunk
                    ended = ended or final
                if not ended:
                    yield Chunk("", final=True)
            finally:
                # Closed here and not by the collector, so that the cancel goes out before the channel closes.
                responses.close()


class _News:
    """What is new in the chunks of an llmapi model: NVIDIA's sends the whole text so far, again and again (``output.text``)."""

    def __init__(self) -> None:
        self._said: dict[int, str] = {}

    def of(self, chunk: Chunk) -> Chunk:
        """The chunk less what was said before; at its end a text can become shorter, where a stop word is cut off."""
        said, text = self._said.get(chunk.index, ""), chunk.text
        known = len(said)
        if not text.startswith(said):
            pairs = enumerate(zip(said, text, strict=False))
            known = next((place for place, (old, new) in pairs if old != new), min(len(said), len(text)))
        self._said[chunk.index] = text
        return replace(chunk, text=text[known:])


def _inputs(connection: Connection, request: Request, offered: dict[str, TensorMetadata]) -> tuple[Input, ...]:
    if request.stream and not connection.decoupled(request.model):
        raise InferenceError(
            "the model answers once and cannot stream",
            where=request.model,
            hint="ask with --no-stream, or build it with serve.stream = true",
        )
    if "text_input" not in offered:
        raise InferenceError(
            f"the model takes no text (its inputs: {', '.join(sorted(offered))})",
            where=request.model,
            hint="ask the bls model (tensorrt_llm_bls) or the ensemble",
        )
    wanted = _words(request)
    named = {word: _offered_name(word, offered) for word in wanted}
    refused = [word for word, name in named.items() if not name and word not in _OPTIONAL]
    if refused:
        raise InferenceError(
            f"the model has no input for {', '.join(refused)}",
            where=request.model,
            hint=f"leave that out; it takes: {', '.join(sorted(offered))}",
        )
    return tuple(_input(offered[name], wanted[word], request.model) for word, name in named.items() if name)


def _words(request: Request) -> dict[str, Values]:
    """What is asked for; nothing stands for what is left to the server."""
    single: dict[str, str | int | float | bool | None] = {
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "seed": request.seed,
        "beam_width": request.beam_width,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "min_tokens": request.min_tokens,
        "stream": request.stream,
        "exclude_input_in_output": True,
    }
    words: dict[str, Values] = {word: (value,) for word, value in single.items() if value is not None}
    several: dict[str, Values] = {"stop": request.stop, "bad": request.bad}
    return words | {word: values for word, values in several.items() if values}


def _offered_name(word: str, offered: dict[str, TensorMetadata]) -> str:
    names = _RENAMED.get(word, (word,))
    return next((name for name in (*names, f"{_LLMAPI}{word}") if name in offered), "")


def _input(tensor: TensorMetadata, values: Values, model: str) -> Input:
    shape = (*(1 for _ in tensor.shape[1:]), len(values))
    try:
        return Input(tensor.name, tensor.datatype, shape, _raw(tensor.datatype, values))
    except struct.error as error:
        raise InferenceError(
            f"{tensor.name} {', '.join(map(str, values))} does not fit {tensor.datatype} ({error})", where=model
        ) from error


def _raw(datatype: str, values: Values) -> bytes:
    """Values in the protocol's layout."""
    if datatype == "BYTES":
        words = [str(value).encode() for value in values]
        return b"".join(struct.pack("<I", len(word)) + word for word in words)
    code = _CODES[datatype]
    cast = float if code in "efd" else int
    return struct.pack(f"<{len(values)}{code}", *(cast(value) for value in values))


def _chunks(response: InferResponse, final: bool) -> Iterator[Chunk]:
    """One chunk for each sequence that the response speaks for; an empty last one carries the end."""
    contents = {tensor.name: raw for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=False)}
    texts = tuple(_texts(contents.get("text_output", b"")))
    sequence = contents.get("sequence_index", b"")
    first = struct.unpack_from("<i", sequence)[0] if len(sequence) >= 4 and len(texts) == 1 else 0
    for index, text in enumerate(texts):
        yield Chunk(text, final and index == len(texts) - 1, first + index)
    if final and not texts:
        yield Chunk("", final=True)


def _texts(raw: bytes) -> Iterator[str]:
    position = 0
    while position < len(raw):
        (length,) = struct.unpack_from("<I", raw, position)
        position += 4 + length
        yield raw[position - length : position].decode(errors="replace")
