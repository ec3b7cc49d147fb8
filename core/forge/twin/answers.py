"""The way back: what voices say, as the output tensors of TensorRT-LLM's `tensorrt_llm` model."""

# Triton puts its classes into pb_utils only after this module was imported: annotations must not look for them yet.
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from .arrays import Array, Floats
from .asks import Ask
from .pieces import Pieces
from .post import Post
from .voices import Line, Voice
from .ways import Responses, Way

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

Said = Sequence[tuple[Ask, Sequence[Line]]]
"""For each row of an answer: what was asked, and the lines to give."""


class Answer:
    """One request's exchange (see batching.Exchange) over the way that its answers go.

    A decoupled model answers each sequence by itself, with its batch_index and sequence_index; another answers once, with
    all rows and lines in one array. ``outputs`` holds the declared outputs' numpy types by name.
    """

    def __init__(
        self,
        request: pb_utils.InferenceRequest,
        asks: tuple[Ask, ...],
        outputs: Mapping[str, type],
        pieces: Pieces,
        way: Way,
        *,
        decoupled: bool,
    ) -> None:
        self.request_id, self.asks = request.request_id(), asks
        self._decoupled, self._pieces, self._way = decoupled, pieces, way
        wanted = set(request.requested_output_names()) or set(outputs)
        self._outputs = {name: kind for name, kind in outputs.items() if name in wanted}
        self._left = sum(1 if ask.beams.width > 1 else ask.samples for ask in asks)
        self._sent: dict[tuple[int, int], int] = {}
        self._read: dict[int, list[Floats]] = {}
        self._kept: dict[tuple[int, int], Sequence[Line]] = {}

    def cancelled(self) -> bool:
        return self._way.gone()

    def read(self, row: int, logits: Floats) -> None:
        self._read.setdefault(row, []).append(logits)

    def said(self, row: int, sample: int, voice: Voice) -> None:
        ask = self.asks[row]
        self._left -= voice.done
        if ask.streaming and ask.beams.width == 1:
            self._stream(row, sample, voice)
        elif voice.done:
            lines = voice.lines()[: ask.samples]
            if self._decoupled:
                self._send(self._arrays([(ask, lines)], row, sample))
            else:
                self._kept[row, sample] = lines
                if not self._left:
                    self._send(self._arrays(self._gathered(), 0, 0))

    def fail(self, what: str) -> None:
        self._way.fail(what)

    def end(self) -> None:
        self._way.end()

    def _stream(self, row: int, sample: int, voice: Voice) -> None:
        line, ask = voice.lines()[0], self.asks[row]
        begin = self._sent.get((row, sample), 0)
        fresh = line.tokens[begin:]
        if not voice.done and not self._pieces.whole(fresh):
            return
        self._sent[row, sample] = len(line.tokens)
        # Ids are the new ones, log-probabilities all so far: that is how TensorRT-LLM streams them (LlmRequest::createResult).
        part = Line(fresh, line.log_probs, line.logits[begin:], line.tops[begin:])
        self._send(self._arrays([(ask, [part])], row, sample, line.cumulative))

    def _send(self, arrays: Mapping[str, Array]) -> None:
        self._way.send(arrays, last=not self._left)

    def _gathered(self) -> Said:
        return [
            (ask, [line for (at, _), lines in sorted(self._kept.items(), key=_place) if at == row for line in lines])
            for row, ask in enumerate(self.asks)
        ]

    def _arrays(self, said: Said, row: int, sample: int, so_far: float | None = None) -> dict[str, Array]:
        """The outputs that are declared and wanted. ``so_far`` is the summed log-probability of a line that goes on."""
        table = _Table(said, so_far, [self._read.get(row + index, []) for index in range(len(said))])
        made: Mapping[str, Callable[[], Array]] = {
            "output_ids": table.output_ids,
            "sequence_length": table.sequence_length,
            "cum_log_probs": table.cum_log_probs,
            "output_log_probs": table.output_log_probs,
            "top_ids": lambda: table.tops(0),
            "top_log_probs": lambda: table.tops(1),
            "context_logits": table.context_logits,
            "generation_logits": table.generation_logits,
            "batch_index": lambda: table.each(range(row, row + len(said))),
            "sequence_index": lambda: table.each([sample] * len(said)),
            "num_input_tokens": lambda: table.each([len(ask.prompt) for ask, _ in said]),
            "num_output_tokens": lambda: table.each([sum(len(line.tokens) for line in lines) for _, lines in said]),
        }
        return {name: _typed(make(), self._outputs[name]) for name, make in made.items() if name in self._outputs}


def refuse(request: pb_utils.InferenceRequest, what: str, post: Post, *, busy: bool = False) -> None:
    """Answers a request that cannot be served, now or ever; its error and its end go in one send."""
    kinds = pb_utils.TritonError
    error = pb_utils.TritonError(what, kinds.UNAVAILABLE if busy else kinds.INVALID_ARG)
    post.send(request.get_response_sender(), pb_utils.InferenceResponse(error=error), _FINAL)


def agree(request: pb_utils.InferenceRequest, post: Post, *, decoupled: bool) -> None:
    """Answers a request that has nothing to be told: a `stop`, or one whose asker has gone."""
    Responses(request.get_response_sender(), post, decoupled=decoupled).end()


def _place(item: tuple[tuple[int, int], Sequence[Line]]) -> tuple[int, int]:
    return item[0]


def _typed(array: Array, kind: type) -> Array:
    return array.astype(np.dtype(kind), copy=False)


class _Table:
    """Rows of lines as rectangular arrays [rows, lines, ...]; short lines are filled up with the row's pad token, or 0."""

    def __init__(self, said: Said, so_far: float | None, read: Sequence[list[Floats]]) -> None:
        self._said, self._so_far, self._read = said, so_far, read
        self._lines = max(len(lines) for _, lines in said)
        self._ids = [[self._shown(ask, line) for line in lines] for ask, lines in said]

    @staticmethod
    def _shown(ask: Ask, line: Line) -> list[int]:
        return line.tokens if ask.streaming or ask.exclude_input else [*ask.before.tolist(), *line.tokens]

    def each(self, values: Sequence[int]) -> Array:
        return np.array(values, np.int32).reshape(-1, 1)

    def output_ids(self) -> Array:
        pads = [ask.pad_id for ask, _ in self._said]
        longest = max((len(ids) for row in self._ids for ids in row), default=0)
        out = np.empty((len(self._said), self._lines, longest), np.int32)
        for row, (pad, lines) in enumerate(zip(pads, self._ids, strict=True)):
            out[row] = pad
            for place, ids in enumerate(lines):
                out[row, place, : len(ids)] = ids
        return out

    def sequence_length(self) -> Array:
        out = np.zeros((len(self._said), self._lines), np.int32)
        for row, lines in enumerate(self._ids):
            out[row, : len(lines)] = [len(ids) for ids in lines]
        return out

    def cum_log_probs(self) -> Array:
        out = np.zeros((len(self._said), self._lines), np.float32)
        for row, (_, lines) in enumerate(self._said):
            out[row, : len(lines)] = [line.cumulative if self._so_far is None else self._so_far for line in lines]
        return out

    def output_log_probs(self) -> Array:
        """[rows, lines, longest]; -1 stands where a line is shorter, as TensorRT-LLM fills them up, and 0 where none asked."""
        longest = max((len(line.log_probs) for _, lines in self._said for line in lines), default=0)
        if not longest:
            return np.zeros((len(self._said), self._lines, self._longest()), np.float32)
        out = np.full((len(self._said), self._lines, longest), -1.0, np.float32)
        for row, (_, lines) in enumerate(self._said):
            for place, line in enumerate(lines):
                out[row, place, : len(line.log_probs)] = line.log_probs
        return out

    def tops(self, part: int) -> Array:
        """[rows, lines, longest, tokens told]: ids (part 0) or log-probabilities (1); a single 0 where no row asked."""
        most = max((ask.tops for ask, _ in self._said), default=0)
        if not most:
            return np.zeros((len(self._said), 1, 1, 1), np.float32)
        out = np.zeros((len(self._said), self._lines, self._longest(), most), np.float64)
        for row, (_, lines) in enumerate(self._said):
            for place, line in enumerate(lines):
                for step, top in enumerate(line.tops):
                    out[row, place, step, : len(top[part])] = top[part]
        return out

    def context_logits(self) -> Array:
        """[rows, longest prompt, vocabulary]; a single 0 where no row asked, as TensorRT-LLM fills an output in."""
        found = [np.concatenate(pieces) if pieces else np.zeros((1, 1), np.float32) for pieces in self._read]
        length, width = (max(size) for size in zip(*(logits.shape for logits in found), strict=True))
        out: NDArray[np.float32] = np.zeros((len(found), length, width), np.float32)
        for row, logits in enumerate(found):
            out[row, : logits.shape[0], : logits.shape[1]] = logits
        return out

    def generation_logits(self) -> Array:
        """[rows, lines, longest answer, vocabulary]; a single 0 where no row asked."""
        width = max((len(logits) for _, lines in self._said for line in lines for logits in line.logits), default=0)
        if not width:
            return np.zeros((len(self._said), 1, 1, 1), np.float32)
        out = np.zeros((len(self._said), self._lines, self._longest(), width), np.float32)
        for row, (_, lines) in enumerate(self._said):
            for place, line in enumerate(lines):
                for step, logits in enumerate(line.logits):
                    out[row, place, step] = logits
        return out

    def _longest(self) -> int:
        return max((len(line.tokens) for _, lines in self._said for line in lines), default=0)
