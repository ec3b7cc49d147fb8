"""Text to token ids, in Triton's Python backend and on ``tokenizers`` alone.

Tensors as in TensorRT-LLM's own preprocessing. A request that cannot be understood is refused by itself; those that share a
batch with it go on.
"""

# Triton puts its classes into triton_python_backend_utils after this module has run: annotations must wait.
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray
from tokenizers import Tokenizer

ANCHORS = ("\n", "0", "|", "a")
"""Texts to put before a word so that it is read as a continuation; the first that does not melt into the word is taken."""
TEXTS = ("QUERY", "STOP_WORDS_DICT", "BAD_WORDS_DICT", "EMBEDDING_BIAS_WORDS")
LONG = 20_000
"""Bytes of text of a request from which on it is read in a thread of its own: short requests do not wait behind it."""
LARGEST = 256 << 20
"""Bytes of a JSON file above which it is not read."""
READERS = 2
"""Long requests that are read at the same time."""

Arrays = Mapping[str, NDArray[np.generic]]


class Refused(Exception):  # noqa: N818 (an answer to the client, not a fault of this model)
    """The request is wrong; the text says how."""


@dataclass(frozen=True)
class Limits:
    """The most that one request may hold; 0 sets no limit. Checked before any of it is tokenized."""

    prompt_chars: int
    words: int
    word_chars: int

    @classmethod
    def of(cls, stated: Mapping[str, str], longest: int) -> Limits:
        """As config.pbtxt states them; a prompt is at most max_input_len tokens of the ``longest`` one's characters."""
        length, chars, words, word_chars = (
            int(stated.get(name, "") or 0) for name in ("max_input_len", "max_prompt_chars", "max_words", "max_word_chars")
        )
        return cls(chars or length * longest, words, word_chars)

    def check(self, queries: Sequence[Sequence[str]]) -> None:
        """Refused, where a prompt is too long."""
        most = max((sum(map(len, row)) for row in queries), default=0)
        if 0 < self.prompt_chars < most:
            raise Refused(
                f"the prompt is too long: {most} characters; at most {self.prompt_chars} are taken (limits.max_prompt_chars)"
            )

    def check_words(self, name: str, rows: Sequence[Sequence[str]]) -> None:
        """Refused, where there are too many words, or one is too long."""
        # Clients send a word twice, with a blank before it and without.
        bare = [{word.removeprefix(" ") for word in row} for row in rows]
        count = max(map(len, bare), default=0)
        if 0 < self.words < count:
            raise Refused(f"{name} holds {count} words; at most {self.words} must be given (limits.max_words)")
        longest = max((len(word) for row in bare for word in row), default=0)
        if 0 < self.word_chars < longest:
            raise Refused(
                f"{name} holds a word of {longest} characters; at most {self.word_chars} must be given (limits.max_word_chars)"
            )


class Text:
    """A tokenizer folder of Hugging Face's, with what its settings say of special tokens."""

    def __init__(self, folder: Path, engine: Path | None, add_special_tokens: bool) -> None:
        self._tokenizer = load(folder)
        self._add_special_tokens = add_special_tokens
        stated = _json(folder / "tokenizer_config.json")
        generation = _json(folder / "generation_config.json")
        ends = _ids(generation.get("eos_token_id")) or _stated_ends(engine)
        named_end, named_pad = (self._named(stated.get(f"{name}_token")) for name in ("eos", "pad"))
        self._begin = self._named(stated.get("bos_token"))
        self.end = named_end if named_end is not None else next(iter(ends), -1)
        self.more_ends = [each for each in ends if each != self.end]
        """Other ids that end an answer. TensorRT-LLM knows one end id: the others travel as stop words."""
        self.pad = named_pad if named_pad is not None else next(iter(_ids(generation.get("pad_token_id"))), self.end)
        self._unknown, self._unknown_text = self._named(stated.get("unk_token")), _text(stated.get("unk_token"))
        self.vocabulary = _engine_vocabulary(engine) or self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def longest(self) -> int:
        """Characters of the longest token. Bytes that a token spells are no fewer than its characters."""
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)

    def prompt(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=self._add_special_tokens).ids
        # A chat template has written the first token already; nobody means to have it twice.
        return ids[1:] if len(ids) > 1 and ids[0] == ids[1] == self._begin else ids

    def continuation(self, word: str) -> list[int]:
        """The ids of ``word`` in the middle of a text: no first token, and no space that is not in it."""
        for anchor in ANCHORS:
            before = self._plain(anchor)
            ids = self._plain(anchor + word)
            if before and len(ids) > len(before) and ids[: len(before)] == before:
                return ids[len(before) :]
        return self._plain(word)

    def word(self, text: str) -> list[int]:
        """The ids of a stop or bad word; none where the vocabulary cannot spell it: the unknown token is every such text."""
        ids = self.continuation(text)
        return [] if self._unknown in ids and self._unknown_text not in text else ids

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _named(self, token: object) -> int | None:
        """The id of a token as tokenizer_config.json states it: its text, or an object that holds it."""
        text = _text(token)
        return self._tokenizer.token_to_id(text) if text else None


class TritonPythonModel:
    """QUERY -> INPUT_ID and what TensorRT-LLM wants beside it."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        stated = {key: value["string_value"] for key, value in parameters.items()}
        engine = stated.get("gpt_model_path", "")
        special = stated.get("add_special_tokens", "true").strip().lower() in ("true", "1", "yes", "t")
        self._text = Text(Path(stated["tokenizer_dir"]), Path(engine) if engine else None, special)
        self._limits = Limits.of(stated, self._text.longest)
        self._readers = ThreadPoolExecutor(READERS, "reader")

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse] | None:
        asked = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        if not any(map(is_long, asked)):
            return [self._answer(inputs) for inputs in asked]
        for request, inputs in zip(requests, asked, strict=True):
            sender = request.get_response_sender()
            if is_long(inputs):
                # Copied: the memory of inputs is Triton's again when execute returns.
                self._readers.submit(self._send, sender, {name: np.array(array) for name, array in inputs.items()})
            else:
                self._send(sender, inputs)
        return None

    def finalize(self) -> None:
        self._readers.shutdown(wait=True, cancel_futures=True)

    def _send(self, sender: pb_utils.InferenceResponseSender, inputs: Arrays) -> None:
        sender.send(self._answer(inputs), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _answer(self, inputs: Arrays) -> pb_utils.InferenceResponse:
        try:
            return pb_utils.InferenceResponse(self._tensors(inputs))
        except Refused as refusal:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(refusal), pb_utils.TritonError.INVALID_ARG))
        except Exception as error:  # noqa: BLE001 (the thread's boundary: whatever went wrong is the client's to know)
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"preprocessing failed: {error!r}"))

    def _tensors(self, inputs: Arrays) -> list[pb_utils.Tensor]:
        queries = _texts(inputs, "QUERY")
        self._limits.check(queries)
        lengths = _array(inputs, "REQUEST_OUTPUT_LEN")
        if lengths is None or lengths.astype(np.int64).min(initial=1) < 1:
            raise Refused("max_tokens (REQUEST_OUTPUT_LEN) has to be at least 1")
        prompts = [self._text.prompt("".join(row)) for row in queries]
        if not all(prompts):
            raise Refused("text_input (QUERY) is empty: there is nothing to go on from")
        batch = len(prompts)
        end = _array(inputs, "END_ID")
        ends = _column(end, batch, self._text.end)
        pads = _column(_array(inputs, "PAD_ID"), batch, self._text.pad)
        stops = self._words(inputs, "STOP_WORDS_DICT", batch)
        if end is None:
            for words in stops:
                words.extend([each] for each in self._text.more_ends)
        padded = np.full((batch, max(map(len, prompts))), 0, np.int32)
        for row, ids in enumerate(prompts):
            padded[row] = max(int(pads[row, 0]), 0)
            padded[row, : len(ids)] = ids
        return [
            pb_utils.Tensor("INPUT_ID", padded),
            pb_utils.Tensor("REQUEST_INPUT_LEN", np.array([[len(ids)] for ids in prompts], np.int32)),
            pb_utils.Tensor("REQUEST_OUTPUT_LEN", lengths.astype(np.int32)),
            pb_utils.Tensor("STOP_WORDS_IDS", word_lists(stops)),
            pb_utils.Tensor("BAD_WORDS_IDS", word_lists(self._words(inputs, "BAD_WORDS_DICT", batch))),
            pb_utils.Tensor("EMBEDDING_BIAS", self._bias(inputs, batch)),
            pb_utils.Tensor("OUT_END_ID", ends),
            pb_utils.Tensor("OUT_PAD_ID", pads),
        ]

    def _words(self, inputs: Arrays, name: str, batch: int) -> list[list[list[int]]]:
        rows = _texts(inputs, name) or [[] for _ in range(batch)]
        self._limits.check_words(name, rows)
        return [[self._text.word(word) for word in row if word] for row in rows]

    def _bias(self, inputs: Arrays, batch: int) -> NDArray[np.float32]:
        """[batch, vocabulary], or [batch, 0] where nothing is biased (what TensorRT-LLM takes for none)."""
        words, weights = _texts(inputs, "EMBEDDING_BIAS_WORDS"), _array(inputs, "EMBEDDING_BIAS_WEIGHTS")
        self._limits.check_words("EMBEDDING_BIAS_WORDS", words)
        by_token = self._bias_by_token(inputs)
        if not words and weights is None and by_token is None:
            return np.zeros((batch, 0), np.float32)
        bias = np.zeros((batch, self._text.vocabulary), np.float32)
        if by_token is not None:
            ids, amounts = by_token
            for row in range(batch):
                np.add.at(bias[row], ids[row], amounts[row])
        if not words and weights is None:
            return bias
        if weights is None or [len(row) for row in words] != [len(row) for row in weights]:
            raise Refused("embedding_bias_words and embedding_bias_weights have to go together, a weight for each word")
        for row, (texts, amounts) in enumerate(zip(words, weights, strict=True)):
            for text, amount in zip(texts, amounts, strict=True):
                for token in self._text.continuation(text) if text else ():
                    bias[row, token] += amount
        return bias

    def _bias_by_token(self, inputs: Arrays) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Ids and amounts, [batch, count] each; None where there are none."""
        ids, amounts = _array(inputs, "LOGIT_BIAS_IDS"), _array(inputs, "LOGIT_BIAS_VALUES")
        if ids is None and amounts is None:
            return None
        if ids is None or amounts is None or ids.shape != amounts.shape:
            raise Refused("logit_bias_ids and logit_bias_values have to go together, a value for each token")
        tokens, most = ids.astype(np.int64), self._text.vocabulary
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < most):
            raise Refused(f"logit_bias_ids has to hold tokens of the vocabulary, which has {most}")
        if not np.isfinite(amounts.astype(np.float32)).all():
            raise Refused("logit_bias_values has to hold finite numbers")
        return tokens, amounts.astype(np.float32)


def is_long(inputs: Arrays) -> bool:
    """Whether tokenizing a request's texts takes long enough for others to notice."""
    texts = (cast("bytes", text) for name in TEXTS if name in inputs for text in inputs[name].flat)
    return sum(map(len, texts)) > LONG


def load(folder: Path) -> Tokenizer:
    """The fast tokenizer of a folder, with neither truncation nor padding. Raises TritonModelException when there is none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise pb_utils.TritonModelException(f"{file} is missing: this model reads fast tokenizers (tokenizer.json) only")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def word_lists(rows: Sequence[Sequence[Sequence[int]]]) -> NDArray[np.int32]:
    """TensorRT-LLM's form of word lists, [batch, 2, L]: all words' ids, and where each word ends, padded with -1."""
    width = max([1, *(sum(map(len, words)) for words in rows)])
    lists = np.zeros((len(rows), 2, width), np.int32)
    lists[:, 1] = -1
    for row, words in enumerate(rows):
        held = [word for word in words if word]
        flat = [token for word in held for token in word]
        lists[row, 0, : len(flat)] = flat
        lists[row, 1, : len(held)] = np.cumsum([len(word) for word in held], dtype=np.int32)
    return lists


def _array(inputs: Arrays, name: str) -> NDArray[np.generic] | None:
    return inputs.get(name)


def _texts(inputs: Arrays, name: str) -> list[list[str]]:
    """A tensor of strings row by row; no rows where the request has none."""
    held = _array(inputs, name)
    if held is None:
        return []
    try:
        return [[value.decode() if isinstance(value, bytes) else str(value) for value in row.flat] for row in held]
    except UnicodeDecodeError as error:
        raise Refused(f"{name} is not UTF-8: {error}") from error


def _column(given: NDArray[np.generic] | None, batch: int, otherwise: int) -> NDArray[np.int32]:
    if given is None or not given.size:
        return np.full((batch, 1), otherwise, np.int32)
    return given.reshape(batch, 1).astype(np.int32)


def _engine_vocabulary(engine: Path | None) -> int | None:
    """The rows of the embedding, as an engine's config.json states them, or the checkpoint's that stands in for one."""
    stated = _json(engine / "config.json") if engine else {}
    size = _object(stated.get("pretrained_config", stated)).get("vocab_size")
    return size if isinstance(size, int) else None


def _stated_ends(engine: Path | None) -> list[int]:
    """What config.json says where no generation_config.json does; of a checkpoint in several parts, its text's."""
    stated = _json(engine / "config.json") if engine else {}
    return _ids(stated.get("eos_token_id")) or _ids(_object(stated.get("text_config")).get("eos_token_id"))


def _ids(stated: object) -> list[int]:
    listed = cast("list[object]", stated) if isinstance(stated, list) else [stated]
    return list(dict.fromkeys(each for each in listed if isinstance(each, int) and not isinstance(each, bool)))


def _object(stated: object) -> dict[str, object]:
    return cast("dict[str, object]", stated) if isinstance(stated, dict) else {}


def _text(token: object) -> str:
    """A token's text as tokenizer_config.json states it; empty where it does not."""
    text = _object(token).get("content", token)
    return text if isinstance(text, str) else ""


def _json(file: Path) -> dict[str, object]:
    """The object in ``file``, empty where there is no such file.

    TritonModelException, which keeps the model from loading, where it cannot be read.
    """
    if not (file.exists() or file.is_symlink()):
        return {}
    if not file.is_file() or file.stat().st_size > LARGEST:  # a pipe would be waited for
        raise pb_utils.TritonModelException(f"{file} is no file, or has more than {LARGEST} bytes; build the model anew")
    try:
        return _object(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise pb_utils.TritonModelException(f"{file} cannot be read: {error}; build the model anew") from error
