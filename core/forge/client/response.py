"""A model's responses, read as the chunks of an answer. Pure: one Ear hears one request, whatever brought the responses."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from forge.client.answer import BROKEN
from forge.client.tensors import LLMAPI
from forge.client.types import Acceptance, Alternative, Chunk, ModelMetadata, Request
from forge.client.vllm import SAMPLING, places
from forge.errors import InferenceError

_PADDING = -1.0
"""What TensorRT-LLM fills the log-probabilities of shorter sequences up with."""
_UNENDED = "None"
"""What the models of llmapi and of vLLM say of a sequence that goes on: Python's str of what is not there yet."""


class Output(Protocol):
    """One tensor of a response; its content lies beside it in ``raw_output_contents``."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...


class Response(Protocol):
    """KServe's ModelInferResponse."""

    @property
    def outputs(self) -> Sequence[Output]: ...
    @property
    def raw_output_contents(self) -> Sequence[bytes]: ...


class Ear:
    """Hears one request's responses and says what is new in each.

    NVIDIA's llmapi model sends the whole text so far again and again, and so does bls with ``accumulate_tokens``: a character
    that spans tokens is broken at its end until it is whole, and is held back so long. TensorRT-LLM
    sends all log-probabilities so far with each piece (LlmRequest::createResult), forge's first twins sent the new ones.
    """

    def __init__(self, request: Request, model: ModelMetadata) -> None:
        self._request = request
        # Streaming beams come whole each time: TensorRT-LLM allows no other way (returnAllGeneratedTokens).
        self._whole = request.stream and (request.beam_width or 1) > 1
        self._repeats = not self._whole and (model.accumulates or f"{LLMAPI}max_tokens" in model.inputs)
        self._said: dict[int, str] = {}
        self._heard: dict[int, str] = {}
        self._known: dict[int, tuple[float, ...]] = {}
        self._ended: set[int] = set()
        self._padded = SAMPLING in model.inputs

    def hear(self, response: Response, seconds: float, *, final: bool) -> Iterator[Chunk]:
        """One chunk for each sequence that the response, which came after ``seconds``, speaks for; an empty last one carries
        the end. InferenceError where its tensors are not what their types say."""
        try:
            yield from self._chunks(_Held(response), seconds, final=final)
        except (struct.error, ValueError) as error:
            hint = "is it a model that forge serves? `forge check` looks at its repository"
            raise InferenceError(f"the model's answer cannot be read: {error}", where=self._request.model, hint=hint) from error

    def _chunks(self, held: "_Held", seconds: float, *, final: bool) -> Iterator[Chunk]:
        texts, ids, reasons = held.texts(), held.tokens(), held.texts("finish_reason")
        count = max(len(texts), len(ids))
        sums = held.floats("cum_log_probs") or held.numbers("cumulative_logprob")
        said = [places(text) for text in held.texts("logprobs")]
        counted = held.wholes("num_output_tokens") if self._request.return_token_counts else ()
        first = held.whole("sequence_index") if count == 1 else 0
        for place in range(count):
            index = (first or 0) + place
            text = texts[place] if place < len(texts) else ""
            if self._repeats:
                text = self._news(index, text) + (self._kept_back(index) if final else "")
            told = said[place] if place < len(said) else ()
            chunk = Chunk(
                text,
                final and place == count - 1,
                index=index,
                tokens=ids[place] if place < len(ids) else tuple(each[0].token for each in told),
                log_probs=tuple(each[0].log_prob for each in told)
                if said
                else self._log_probs(index, held.rows("output_log_probs"), place, count),
                alternatives=self._alternatives(told),
                spelled=tuple(each[0].text for each in told),
                cum_log_prob=sums[place] if self._request.return_log_probs and place < len(sums) else None,
                acceptance=held.acceptance() if self._request.return_perf_metrics else None,
                input_tokens=held.whole("num_input_tokens") if self._request.return_token_counts and not place else None,
                # One count is that of the whole response; vLLM's has one for each sequence.
                output_tokens=counted[place] if place < len(counted) else None,
                finish=reasons[place] if place < len(reasons) and reasons[place] != _UNENDED else "",
                whole=self._whole and count > 1,
                seconds=seconds,
            )
            if count == 1 or not self._is_idle(chunk):
                yield chunk
        if final and not count:
            yield from self.end(seconds)

    def _is_idle(self, chunk: Chunk) -> bool:
        """Whether one of several sequences has nothing new: vLLM's responses have an element for each, whoever speaks."""
        ended = chunk.index in self._ended
        if chunk.finish:
            self._ended.add(chunk.index)
        brings = chunk.text or chunk.tokens or chunk.log_probs or chunk.output_tokens or chunk.final
        return self._padded and not brings and (ended or not chunk.finish)

    def end(self, seconds: float) -> Iterator[Chunk]:
        """What is left to say when nothing more comes; the last chunk is final."""
        rests = [(index, rest) for index in sorted(self._heard) if (rest := self._kept_back(index))] or [(0, "")]
        for index, rest in rests:
            yield Chunk(rest, (index, rest) == rests[-1], index=index, seconds=seconds)

    def _log_probs(self, index: int, rows: Sequence[tuple[float, ...]], place: int, count: int) -> tuple[float, ...]:
        """The new ones; what was not asked for may be filled in with zeros."""
        if not self._request.return_log_probs or place >= len(rows):
            return ()
        row = rows[place]
        while count > 1 and row and row[-1] == _PADDING:
            row = row[:-1]
        known = () if self._whole else self._known.get(index, ())
        repeats = row[: len(known)] == known
        self._known[index] = row if repeats else (*known, *row)
        return row[len(known) :] if repeats else row

    def _alternatives(self, told: tuple[tuple[Alternative, ...], ...]) -> tuple[tuple[Alternative, ...], ...]:
        """As many as were asked for, likeliest first: the one that was picked comes beside those, wherever it ranks."""
        most = self._request.top_log_probs
        if not most:
            return ()
        return tuple(tuple(sorted(each, key=lambda one: -one.log_prob)[:most]) for each in told)

    def _news(self, index: int, text: str) -> str:
        """The text less what was said before. What ends in broken characters is not whole yet (``end`` says what stays so); at
        its end a text can become shorter, where a stop word is cut off."""
        self._heard[index] = text
        kept = text.rstrip(BROKEN) if self._request.stream else text
        said = self._said.get(index, "")
        if said.startswith(kept):
            return ""
        pairs = enumerate(zip(said, kept, strict=False))
        known = next((place for place, (old, new) in pairs if old != new), len(said))
        self._said[index] = kept
        return kept[known:]

    def _kept_back(self, index: int) -> str:
        """The broken characters at the end of a text that nothing made whole."""
        heard, said = self._heard.pop(index, ""), self._said.get(index, "")
        return heard[len(said) :] if heard.startswith(said) else ""


class _Held:
    """Typed looks into one response's tensors."""

    def __init__(self, response: Response) -> None:
        self._raw: Mapping[str, tuple[tuple[int, ...], bytes]] = {
            tensor.name: (tuple(tensor.shape), raw)
            for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=False)
        }
        self._words = {tensor.name for tensor in response.outputs if tensor.datatype == "BYTES"}

    def texts(self, name: str = "text_output") -> list[str]:
        _, raw = self._raw.get(name, ((), b""))
        found: list[str] = []
        position = 0
        while position < len(raw):
            (length,) = struct.unpack_from("<I", raw, position)
            position += 4 + length
            found.append(raw[position - length : position].decode(errors="replace"))
        return found

    def tokens(self) -> list[tuple[int, ...]]:
        """output_ids [1, sequences, length], each row cut to its sequence_length."""
        shape, raw = self._raw.get("output_ids", ((), b""))
        if not shape:
            return []
        _, lengths = self._raw.get("sequence_length", ((), b""))
        width = shape[-1]
        flat = struct.unpack(f"<{len(raw) // 4}i", raw)
        count = len(flat) // width if width else len(lengths) // 4
        cut = struct.unpack(f"<{len(lengths) // 4}i", lengths) or (width,) * count
        return [flat[row * width : row * width + min(length, width)] for row, length in zip(range(count), cut, strict=False)]

    def floats(self, name: str) -> tuple[float, ...]:
        _, raw = self._raw.get(name, ((), b""))
        return struct.unpack(f"<{len(raw) // 4}f", raw)

    def numbers(self, name: str) -> tuple[float, ...]:
        """Floats, or the words of numbers that llmapi's model writes where its config.pbtxt says FP32."""
        return tuple(float(text) for text in self.texts(name)) if name in self._words else self.floats(name)

    def rows(self, name: str) -> list[tuple[float, ...]]:
        """[1, sequences, length] as its rows."""
        shape, _ = self._raw.get(name, ((), b""))
        flat, width = self.floats(name), shape[-1] if shape else 0
        return [flat[start : start + width] for start in range(0, len(flat), width)] if width else []

    def whole(self, name: str) -> int | None:
        return next(iter(self.wholes(name)), None)

    def wholes(self, name: str) -> tuple[int, ...]:
        _, raw = self._raw.get(name, ((), b""))
        return struct.unpack(f"<{len(raw) // 4}i", raw[: len(raw) // 4 * 4])

    def acceptance(self) -> Acceptance | None:
        """None where nothing was drafted: TensorRT-LLM then reports zeros."""
        rate = self.floats("acceptance_rate")
        accepted, drafted = self.whole("total_accepted_draft_tokens") or 0, self.whole("total_draft_tokens") or 0
        return Acceptance(rate[0], accepted, drafted) if rate and (rate[0] or drafted) else None
