"""Asks preprocessing and postprocessing by themselves; names and types of their tensors are read from the server."""

import struct
from collections.abc import Sequence
from itertools import pairwise

from forge.client.grpc import Client
from forge.client.tensors import Input
from forge.errors import InferenceError

_SECONDS = 60.0


class TritonStages:
    """The Stages of a verification (forge.verify.interview)."""

    def ids(self, address: str, model: str, text: str, stop: tuple[str, ...] = ()) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids of ``text``, and those of all stop words on end. InferenceError for what the model refuses."""
        found = _prepared(address, model, text, stop)
        ids = _read(found, "INPUT_ID", model)
        length = _read(found, "REQUEST_INPUT_LEN", model)[0]
        return ids[:length], _words(_read(found, "STOP_WORDS_IDS", model)) if stop else ()

    def ends(self, address: str, model: str, further: tuple[str, ...] = ()) -> tuple[int, ...]:
        """The end id, and stop words of one token. InferenceError where it tells no end id."""
        found = _prepared(address, model, "a", further)
        own = _read(found, "OUT_END_ID", model)
        return (*own[:1], *(words[0] for words in _each(_numbers(found.get("STOP_WORDS_IDS", b""))) if len(words) == 1))

    def text(self, address: str, model: str, tokens: tuple[int, ...]) -> str:
        """The text of ``tokens``. InferenceError for what the model refuses."""
        inputs = (
            Input("TOKENS_BATCH", "INT32", (1, 1, len(tokens)), _ints(tokens)),
            Input("SEQUENCE_LENGTH", "INT32", (1, 1), _ints((len(tokens),))),
        )
        raw = _ask(address, model, inputs).get("OUTPUT", b"")
        if len(raw) < 4:
            raise InferenceError("it answered no text", where=model)
        (length,) = struct.unpack_from("<I", raw)
        return raw[4 : 4 + length].decode(errors="replace")


def _prepared(address: str, model: str, text: str, stop: tuple[str, ...]) -> dict[str, bytes]:
    """What preprocessing makes of a text and of stop words."""
    inputs = [Input("QUERY", "BYTES", (1, 1), _texts((text,))), Input("REQUEST_OUTPUT_LEN", "INT32", (1, 1), _ints((1,)))]
    if stop:
        inputs.append(Input("STOP_WORDS_DICT", "BYTES", (1, len(stop)), _texts(stop)))
    return _ask(address, model, inputs)


def _ask(address: str, model: str, inputs: Sequence[Input]) -> dict[str, bytes]:
    with Client(address, timeout=_SECONDS) as client:
        return client.tensors(model, inputs)


def _read(found: dict[str, bytes], name: str, model: str) -> tuple[int, ...]:
    raw = found.get(name, b"")
    if not raw:
        raise InferenceError(f"it answered no {name}", where=model)
    return _numbers(raw)


def _numbers(raw: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(raw) // 4}i", raw)


def _each(lists: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The words of [2, L], one by one."""
    half = len(lists) // 2
    edges = [0, *(end for end in lists[half:] if end > 0)]
    return [lists[start:end] for start, end in pairwise(edges)]


def _words(lists: tuple[int, ...]) -> tuple[int, ...]:
    """All ids out of [2, L]: the second row says where each word ends, and -1 fills up."""
    half = len(lists) // 2
    return lists[: max((end for end in lists[half:] if end > 0), default=0)]


def _ints(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def _texts(values: Sequence[str]) -> bytes:
    words = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(word)) + word for word in words)
