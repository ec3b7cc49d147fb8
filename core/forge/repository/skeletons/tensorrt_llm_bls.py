"""Text in, text out, token by token: asks preprocessing and tensorrt_llm, and turns ids into text itself.

Each request has a thread, so one instance carries many streams; tensorrt_llm's answers come to it by a pipe of its own. Triton
does not tell a model's own requests that their asker was cancelled: a watch looks for cancelled requests and closes their
pipes. A tensorrt_llm that answers whole (not decoupled) answers by Triton, and is stopped by a ``stop`` request.
"""

# Triton puts its classes into triton_python_backend_utils after this module has run: annotations must wait.
from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray
from tokenizers import Tokenizer

from . import alternatives
from .detokenizer import Detokenizer, spelled
from .pipe import PARAMETER, Pipe, PipeFault
from .whole import LOG_PROBS, Whole, joined, text_tensor

STREAMS = 24
"""Requests carried at once. Triton gives an instance 32 threads: each request that it makes holds one to its end, and its
answers need some. ``max_queued`` more wait for a place; the next is refused."""
FULL = "{} requests are open here already: ask again later (limits.max_queued of the recipe lets more wait)"

WATCH_SECONDS = 0.05
PATIENCE = 4
"""Looks of the watch after which a stop request is sent again: the first can overtake what it is to stop."""

# fmt: off
TO_PREPROCESSING = {
    "text_input": "QUERY", "max_tokens": "REQUEST_OUTPUT_LEN", "end_id": "END_ID", "pad_id": "PAD_ID",
    "stop_words": "STOP_WORDS_DICT", "bad_words": "BAD_WORDS_DICT",
    "embedding_bias_words": "EMBEDDING_BIAS_WORDS", "embedding_bias_weights": "EMBEDDING_BIAS_WEIGHTS",
    "logit_bias_ids": "LOGIT_BIAS_IDS", "logit_bias_values": "LOGIT_BIAS_VALUES",
}
FROM_PREPROCESSING = {
    "INPUT_ID": "input_ids", "REQUEST_INPUT_LEN": "input_lengths", "REQUEST_OUTPUT_LEN": "request_output_len",
    "STOP_WORDS_IDS": "stop_words_list", "BAD_WORDS_IDS": "bad_words_list", "EMBEDDING_BIAS": "embedding_bias",
    "OUT_END_ID": "end_id", "OUT_PAD_ID": "pad_id",
}
TO_ENGINE = {"stream": "streaming", "top_k": "runtime_top_k", "top_p": "runtime_top_p", "length_penalty": "len_penalty"} | {
    same: same for same in (
        "num_return_sequences", "beam_width", "temperature", "seed", "min_tokens", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "min_p", "exclude_input_in_output", "return_log_probs",
        "return_num_input_tokens", "return_num_output_tokens", alternatives.COUNT,
    )
}
# fmt: on
YES = ("true", "1", "yes", "t")
COUNTS = ("num_input_tokens", "num_output_tokens")

Arrays = Mapping[str, NDArray[np.generic]]
Result = TypeVar("Result")


class Refused(Exception):  # noqa: N818 (an answer to the client, not a fault of this model)
    """The request cannot be answered; the text says why."""

    def __init__(self, why: str, code: int | None = None) -> None:
        super().__init__(why)
        self.code = pb_utils.TritonError.INVALID_ARG if code is None else code


@dataclass(slots=True)
class Call:
    """One client's request: its inputs by name, [batch, ...] each, and where its answers are sent."""

    inputs: Arrays
    sender: pb_utils.InferenceResponseSender
    batch: int
    decoupled: bool
    ids: list[str] = field(default_factory=list[str])
    """Request ids of its rows at tensorrt_llm: its own, so that no two streams are ever taken for one."""
    pipes: list[Pipe] = field(default_factory=list[Pipe])
    texts: dict[int, Whole] = field(default_factory=dict[int, Whole])
    lock: threading.Lock = field(default_factory=threading.Lock)
    rows_left: int = 1
    answered: bool = False
    over: bool = False
    error: pb_utils.TritonError | None = None
    cancelled: bool = False
    begun: bool = False
    """Until then it is not looked at: whether a request was cancelled is a question to Triton, and thousands may wait."""
    looks: int = 0

    def wants(self, name: str) -> bool:
        return bool(np.any(self.inputs.get(name, False)))

    @property
    def idle(self) -> bool:
        """Nobody waits for more of it."""
        return self.cancelled or self.error is not None

    def send(self, tensors: Sequence[pb_utils.Tensor], *, final: bool = False) -> None:
        with self.lock:
            if not self.over and not self.idle:
                flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
                self.sender.send(pb_utils.InferenceResponse(tensors), flags=flags)
                self.answered, self.over = True, final

    def fail(self, why: str, code: int) -> None:
        """The first failure is the one that is told, when every row has ended."""
        with self.lock:
            if not self.over and not self.idle:
                self.error = pb_utils.TritonError(why, code)

    def end(self) -> None:
        """One row is done; with the last the call is."""
        with self.lock:
            self.rows_left -= 1
            if self.rows_left or self.over:
                return
            self.over = True
            if self.cancelled and not self.decoupled:
                self.error = pb_utils.TritonError("the request was cancelled", pb_utils.TritonError.CANCELLED)
            # Alone, an error has to carry FINAL; after tokens, FINAL has to follow by itself or the request is never freed.
            if self.error is not None:
                error = pb_utils.InferenceResponse(error=self.error)
                self.sender.send(error, flags=0 if self.answered else pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            if self.error is None or self.answered:
                self.sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def look(self) -> bool:
        """Whether it is time to send its stop requests."""
        with self.lock:
            if self.over or not self.begun:
                return False
            self.cancelled = self.cancelled or self.sender.is_cancelled()
            self.looks += self.idle
            return self.idle and self.looks % PATIENCE == 1


class TritonPythonModel:
    """text_input, max_tokens, ... -> text_output, in one answer or as a stream."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        stated = {key: value["string_value"] for key, value in config["parameters"].items()}
        file = Path(stated["tokenizer_dir"], "tokenizer.json")
        if not file.is_file():
            raise pb_utils.TritonModelException(f"{file} is missing: this model reads fast tokenizers (tokenizer.json) only")
        self._tokenizer = Tokenizer.from_file(str(file))
        self._skip = stated.get("skip_special_tokens", "true").strip().lower() in YES
        self._accumulate = stated.get("accumulate_tokens", "false").strip().lower() in YES
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self._engine = stated.get("tensorrt_llm_model_name", "tensorrt_llm")
        self._preprocessing = stated.get("preprocessing_model_name", "preprocessing")
        self._most = STREAMS + int(stated.get("max_queued", "") or 4096)
        self._open: dict[int, Call] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._threads = ThreadPoolExecutor(STREAMS, "stream")
        self._askers = ThreadPoolExecutor(STREAMS, "ask")
        self._watch = threading.Thread(target=self._look, name="watch", daemon=True)
        self._watch.start()

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> None:
        for request in requests:
            # Inputs are read here: their memory is Triton's again when execute returns.
            inputs = {tensor.name(): np.array(tensor.as_numpy()) for tensor in request.inputs()}
            call = Call(inputs, request.get_response_sender(), max(map(len, inputs.values())), self._decoupled)
            if len(self._open) >= self._most:
                call.fail(FULL.format(self._most), pb_utils.TritonError.UNAVAILABLE)
                call.end()
                continue
            with self._changed:
                self._open[id(call)] = call
                self._changed.notify()
            self._threads.submit(self._serve, call)

    def finalize(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._threads.shutdown(wait=True)
        self._askers.shutdown(wait=True)
        self._watch.join()

    def _serve(self, call: Call) -> None:
        call.begun = True
        call.look()  # it may have waited for long
        rows = self._guarded(call, lambda: self._prepare(call)) if not call.idle else None
        if not rows:
            return self._end(call)
        with call.lock:
            call.rows_left = len(rows)
            call.ids = [str(secrets.randbits(63)) for _ in rows]
        for number in range(1, len(rows)):
            self._threads.submit(self._row, call, number, rows[number])
        return self._row(call, 0, rows[0])

    def _row(self, call: Call, number: int, inputs: Sequence[pb_utils.Tensor]) -> None:
        answer = self._stream if call.wants("stream") else self._whole
        self._guarded(call, lambda: answer(call, number, inputs))
        self._end(call)

    def _guarded(self, call: Call, work: Callable[[], Result]) -> Result | None:
        """What ``work`` gives; when it fails the call does, and nothing else."""
        try:
            return work()
        except Refused as refusal:
            call.fail(str(refusal), refusal.code)
        except PipeFault as fault:
            call.fail(str(fault), pb_utils.TritonError.INTERNAL)
        except Exception as error:  # noqa: BLE001 (the thread's boundary: whatever went wrong is the client's to know)
            call.fail(f"tensorrt_llm_bls failed: {error!r}", pb_utils.TritonError.INTERNAL)
        return None

    def _end(self, call: Call) -> None:
        call.end()
        if call.over:
            with self._changed:
                self._open.pop(id(call), None)

    def _prepare(self, call: Call) -> list[list[pb_utils.Tensor]]:
        """What tensorrt_llm is to be asked, row by row."""
        if missing := [name for name in ("text_input", "max_tokens") if name not in call.inputs]:
            raise Refused(f"{' and '.join(missing)} cannot be left out")
        if call.wants("stream") and not self._decoupled:
            raise Refused("this model answers whole: it was built with serve.stream = false")
        given = call.inputs
        inputs = [pb_utils.Tensor(theirs, given[ours]) for ours, theirs in TO_PREPROCESSING.items() if ours in given]
        names = list(FROM_PREPROCESSING)
        request = pb_utils.InferenceRequest(model_name=self._preprocessing, requested_output_names=names, inputs=inputs)
        found = _arrays(request.exec())
        lengths = found["REQUEST_INPUT_LEN"].reshape(-1)
        rows: list[list[pb_utils.Tensor]] = []
        for row in range(call.batch):
            own = {theirs: found[ours][row : row + 1] for ours, theirs in FROM_PREPROCESSING.items()}
            own["input_ids"] = own["input_ids"][:, : int(lengths[row])]
            own |= {theirs: given[ours].reshape(-1, 1)[row : row + 1] for ours, theirs in TO_ENGINE.items() if ours in given}
            rows.append([pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in own.items()])
        return rows

    def _answers(self, call: Call, number: int, inputs: Sequence[pb_utils.Tensor]) -> Iterator[dict[str, NDArray[np.generic]]]:
        wanted = ["output_ids", "sequence_length", "sequence_index", *(LOG_PROBS if call.wants("return_log_probs") else ())]
        wanted += [name for name in COUNTS if call.wants(f"return_{name}")]
        wanted += alternatives.NEEDED[:2] if call.wants(alternatives.COUNT) and LOG_PROBS[1] in wanted else ()
        if call.idle:
            return
        ask = partial(
            pb_utils.InferenceRequest,
            model_name=self._engine,
            requested_output_names=wanted,
            inputs=inputs,
            request_id=call.ids[number],
        )
        if not self._decoupled:
            yield _arrays(ask().exec())
            return
        with closing(Pipe()) as pipe:
            with call.lock:
                call.pipes.append(pipe)
            done = self._askers.submit(_ask, ask(parameters={PARAMETER: pipe.name}), pipe)
            answered = False
            for found in pipe.read():
                answered = True
                yield found
            if not answered:
                done.result()
                raise PipeFault(f"{self._engine} did not answer")

    def _stream(self, call: Call, number: int, inputs: Sequence[pb_utils.Tensor]) -> None:
        pieces: dict[int, Detokenizer] = {}
        told: dict[int, str] = {}
        for found in self._answers(call, number, inputs):
            if found["output_ids"].shape[1] > 1:
                # Beams are told whole each time: which of them lead can change with every token.
                beams = list(self._parts(found))
                call.send(self._tensors(call, number, list(map("".join, beams)), found, beams))
                continue
            index = _sequence_index(found)
            piece = pieces.setdefault(index, Detokenizer(self._tokenizer, self._skip))
            parts = [piece.push([token]) for token in next(_sequences(found))]
            new = "".join(parts)
            told[index] = told.get(index, "") + new if self._accumulate else new
            if new or any(name in found for name in (*LOG_PROBS, *COUNTS)):
                call.send(self._tensors(call, number, [told[index]], found, [parts]))
        for index, piece in pieces.items():
            if rest := piece.flush():
                said = told[index] + rest if self._accumulate else rest
                last = {"sequence_index": np.array([[index]], np.int32)} if len(pieces) > 1 else {}
                call.send(self._tensors(call, number, [said], last, []))

    def _whole(self, call: Call, number: int, inputs: Sequence[pb_utils.Tensor]) -> None:
        whole = Whole()
        for found in sorted(self._answers(call, number, inputs), key=_sequence_index):
            parts = list(self._parts(found))
            whole.texts += map("".join, parts)
            whole.tops += self._tops(found, parts)
            told = {name: int(found[name].flat[0]) for name in COUNTS if name in found}
            whole.counts |= {name: count + (name == COUNTS[1] and whole.counts.get(name, 0)) for name, count in told.items()}
            if all(name in found for name in LOG_PROBS):
                whole.sums += found["cum_log_probs"][0].tolist()
                whole.log_probs += found["output_log_probs"][0].tolist()
        with call.lock:
            call.texts[number] = whole
            complete = len(call.texts) == call.batch
        if complete:
            call.send(joined([call.texts[row] for row in range(call.batch)]), final=True)

    def _parts(self, found: Arrays) -> Iterator[list[str]]:
        return (spelled(self._tokenizer, ids, self._skip) for ids in _sequences(found))

    def _tops(self, found: Arrays, parts: list[list[str]]) -> list[str]:
        return alternatives.told(self._tokenizer, found, parts) if "top_ids" in found else []

    def _tensors(
        self, call: Call, number: int, texts: list[str], found: Arrays, parts: list[list[str]]
    ) -> list[pb_utils.Tensor]:
        held = [text_tensor([texts])]
        held += [pb_utils.Tensor(name, found[name]) for name in (*LOG_PROBS, *COUNTS, "sequence_index") if name in found]
        held += [text_tensor([tops], "logprobs")] if (tops := self._tops(found, parts)) else []
        if call.batch > 1:
            held.append(pb_utils.Tensor("batch_index", np.array([[number]], np.int32)))
        return held

    def _look(self) -> None:
        while True:
            with self._changed:
                while not self._open and not self._closing:
                    self._changed.wait()
                if self._closing and not self._open:
                    return
                calls = list(self._open.values())
            for call in calls:
                if call.look():
                    self._stop(call)
            threading.Event().wait(WATCH_SECONDS)

    def _stop(self, call: Call) -> None:
        if self._decoupled:
            for pipe in list(call.pipes):
                pipe.hang_up()
            return
        needed = [FROM_PREPROCESSING[name] for name in ("INPUT_ID", "REQUEST_INPUT_LEN", "REQUEST_OUTPUT_LEN")]
        told = [pb_utils.Tensor(name, np.ones((1, 1), np.int32)) for name in needed]
        told.append(pb_utils.Tensor("stop", np.ones((1, 1), np.bool_)))
        ids = ["output_ids"]
        for each in list(call.ids):
            pb_utils.InferenceRequest(model_name=self._engine, requested_output_names=ids, inputs=told, request_id=each).exec()


def _ask(request: pb_utils.InferenceRequest, pipe: Pipe) -> None:
    """Asks for answers by ``pipe``. Triton has one response, an error or an empty one, when tensorrt_llm is done.

    Refused says what the error is. No array ever comes this way: Triton's stub would free it in a thread without Python's lock.
    """
    try:
        for response in request.exec(decoupled=True):
            _arrays(response)
    finally:
        pipe.shut()


def _arrays(response: pb_utils.InferenceResponse) -> dict[str, NDArray[np.generic]]:
    if response.has_error():
        error = response.error()
        raise Refused(error.message(), error.code())
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def _sequence_index(found: Arrays) -> int:
    return int(found["sequence_index"].flat[0]) if "sequence_index" in found else 0


def _sequences(found: Arrays) -> Iterator[list[int]]:
    """output_ids [1, beams, length], cut to sequence_length [1, beams]."""
    for ids, length in zip(found["output_ids"][0], found["sequence_length"].reshape(-1), strict=False):
        yield ids[: int(length)].tolist()
