"""tensorrt_llm_bls with its siblings in miniature: detokenizing, streams, batches, cancellation, refusals."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

import fake_triton
from forge.repository.config import STREAMS_PER_INSTANCE
from forge.repository.skeletons.detokenizer import Detokenizer, decoded
from forge.twin.pipe import Pipe, named, opened
from patience import PATIENCE
from skeleton_kit import DOOR, ENDS, TOKENIZERS, Array, ask, lay, model, strings, texts, words

LETTERS = st.text(alphabet="ab h,wHEND.é你好🎉👩\u200d🚀\n", max_size=30)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@given(text=LETTERS)
def test_the_pieces_of_a_stream_join_to_the_whole_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    stream = Detokenizer(tokenizer, True)
    pieces = [stream.push([each]) for each in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join([*pieces, stream.flush()]) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@given(cut=st.integers(0, 40))
def test_several_ids_can_come_at_once(kind: str, cut: int) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("hello world, hello 你好 END", add_special_tokens=False).ids
    stream = Detokenizer(tokenizer, True)
    assert stream.push(ids[:cut]) + stream.push(ids[cut:]) + stream.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_a_special_token_in_the_middle_costs_no_space(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    hello, world = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("hello", "hello hello"))
    end = tokenizer.token_to_id(ENDS[kind][1])
    assert end is not None
    ids = [*hello, end, *world[len(hello) :]]
    stream = Detokenizer(tokenizer, True)
    assert "".join([stream.push([each]) for each in ids]) == tokenizer.decode(ids) == "hello hello"


EVERYDAY = (
    "Das kostet 20 € – für Größe „XL“.",
    "你好，世界！我们今天去看电影。",
    "Привет, как дела? 🙂🎉",
    "naïve café 👩\u200d🚀 and 👍🏽 so on",
    "ขอบคุณมากครับ",
)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@pytest.mark.parametrize("text", EVERYDAY)
def test_a_stream_cut_anywhere_says_what_it_says_whole(kind: str, text: str) -> None:
    """An answer may end inside a character: SentencePiece's bytes then decode to nothing but U+FFFD, the whole run of them."""
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    for cut in range(len(ids) + 1):
        for step in (1, 2, 3, 5):
            stream = Detokenizer(tokenizer, True)
            pieces = [stream.push(ids[start : min(start + step, cut)]) for start in range(0, cut, step)]
            assert "".join([*pieces, stream.flush()]) == tokenizer.decode(ids[:cut])


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@given(data=st.data())
def test_any_ids_however_cut_give_one_text(kind: str, data: st.DataObject) -> None:
    """Ids that are no text at all, too: a model that is broken says such."""
    tokenizer = TOKENIZERS[kind]
    some = st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=150)
    bytes_only = st.lists(st.integers(3, 258), min_size=80, max_size=220)
    ids = data.draw(st.one_of(some, bytes_only) if kind == "sentence_piece" else some)
    stream, pieces, start = Detokenizer(tokenizer, True), list[str](), 0
    while start < len(ids):
        step = data.draw(st.integers(1, 9))
        pieces.append(stream.push(ids[start : start + step]))
        start += step
    said = "".join([*pieces, stream.flush()])
    assert said == decoded(tokenizer, ids, True)
    runs = "".join("b" if 3 <= each <= 258 else " " for each in ids).split()
    if kind == "byte_level" or max(map(len, runs), default=0) < Detokenizer.LONGEST:
        assert said == tokenizer.decode(ids)


def test_a_long_run_of_bytes_is_told_in_parts() -> None:
    tokenizer = TOKENIZERS["sentence_piece"]
    ids = tokenizer.encode("好" * 100 + " hello", add_special_tokens=False).ids
    stream = Detokenizer(tokenizer, True)
    pieces = [stream.push([each]) for each in ids]
    assert len([piece for piece in pieces if piece]) > 3
    assert "".join([*pieces, stream.flush()]) == tokenizer.decode(ids)


def test_broken_utf8_is_not_waited_for_for_ever() -> None:
    tokenizer = TOKENIZERS["sentence_piece"]
    byte = tokenizer.token_to_id("<0xE2>") or 0
    stream = Detokenizer(tokenizer, True)
    assert any(stream.push([byte]) for _ in range(Detokenizer.LONGEST))


@dataclass(frozen=True)
class Reply:
    """What a sibling answers with; ``problem`` makes it a failure."""

    arrays: Mapping[str, Array] = field(default_factory=dict[str, Array])
    problem: str = ""

    def has_error(self) -> bool:
        return bool(self.problem)

    def error(self) -> fake_triton.TritonError:
        return fake_triton.TritonError(self.problem, fake_triton.TritonError.INVALID_ARG)

    def output_tensors(self) -> list[fake_triton.Tensor]:
        return [fake_triton.Tensor(name, array) for name, array in self.arrays.items()]


class Siblings:
    """preprocessing as it is, and a tensorrt_llm that repeats the prompt's ids, one an answer, until it is stopped."""

    def __init__(self, folder: Path) -> None:
        self.preprocessing = model("preprocessing", folder)
        self.asked: list[tuple[str, dict[str, Array]]] = []
        self.stopped: set[str] = set()
        self.endless = False
        self.deaf = False
        """It knows nothing of pipes."""
        self.complaint = ""
        self.failure = ""
        """What goes wrong after the first answer; "death": the pipe breaks off."""
        self.pace = threading.Event()
        self.speaking = threading.Event()
        """An endless answer has begun."""

    def door(self) -> ModuleType:
        made = ModuleType(DOOR)
        vars(made).update(vars(fake_triton))
        vars(made)["InferenceRequest"] = partial(Asked, self)
        return made

    def prepare(self, arrays: Mapping[str, Array]) -> Reply:
        found, error = ask(self.preprocessing, **arrays)
        return Reply(found, error)

    def generate(self, arrays: Mapping[str, Array]) -> Iterator[Reply]:
        ids = arrays["input_ids"][0].tolist()
        streams = bool(arrays.get("streaming", np.zeros(1)).any())
        for each in [[one] for one in ids] if streams else [ids]:
            yield self.reply(each)
        while self.endless:
            self.speaking.set()
            self.pace.wait(0.01)
            yield self.reply(ids[-1:])

    def write(self, asked: "Asked", pipe: Pipe) -> None:
        """The answers by the pipe, as the twin's tensorrt_llm gives them."""
        for each in self.generate(asked.arrays):
            pipe.send({name: array for name, array in each.arrays.items() if name in asked.wanted}, last=False)
            if self.failure == "death":
                pipe.close()
                return
            if self.failure:
                pipe.fail(self.failure)
                return
            if pipe.gone():
                self.stopped.add(asked.id)
                break
        pipe.send({}, last=True)

    @staticmethod
    def reply(ids: list[int]) -> Reply:
        logged = {"cum_log_probs": np.zeros((1, 1), np.float32), "output_log_probs": np.zeros((1, 1, len(ids)), np.float32)}
        return Reply({"output_ids": np.array([[ids]], np.int32), "sequence_length": np.array([[len(ids)]], np.int32), **logged})


class Asked:
    """A request that a model makes of a sibling."""

    def __init__(
        self,
        siblings: Siblings,
        *,
        model_name: str,
        requested_output_names: Sequence[str],
        inputs: Sequence[fake_triton.Tensor],
        request_id: str = "",
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        self.siblings, self.model, self.wanted, self.id = siblings, model_name, requested_output_names, request_id
        self.arrays = {one.name(): one.as_numpy() for one in inputs}
        self.parameters = json.dumps(parameters or {})

    def exec(self, decoupled: bool = False) -> Any:
        siblings = self.siblings
        siblings.asked.append((self.model, self.arrays))
        if self.model == "x-preprocessing":
            return siblings.prepare(self.arrays)
        assert self.model == "x-tensorrt_llm"
        if "stop" in self.arrays:
            siblings.stopped.add(self.id)
            return Reply()
        if siblings.complaint:
            return iter([Reply(problem=siblings.complaint)]) if decoupled else Reply(problem=siblings.complaint)
        if not decoupled:
            return next(siblings.generate(self.arrays))
        if not siblings.deaf and (pipe := opened(named(self.parameters))):
            siblings.write(self, pipe)
        return iter([Reply()])


Make = Callable[..., tuple[Any, Siblings]]


@pytest.fixture
def bls(tmp_path: Path) -> Iterator[Make]:
    made: list[Any] = []

    def make(kind: str = "byte_level", *, decoupled: bool = True, **parameters: str) -> tuple[Any, Siblings]:
        siblings = Siblings(lay(tmp_path, kind))
        names = {"tensorrt_llm_model_name": "x-tensorrt_llm", "preprocessing_model_name": "x-preprocessing"}
        one = model("tensorrt_llm_bls", tmp_path, siblings.door(), decoupled=decoupled, **names, **parameters)
        made.append(one)
        return one, siblings

    yield make
    for one in made:
        one.finalize()


def request(*prompts: str | bytes, stream: bool = True, decoupled: bool = True, **more: Array) -> fake_triton.InferenceRequest:
    inputs = {
        "text_input": texts(*([each] for each in prompts)),
        "max_tokens": np.full((len(prompts), 1), 5, np.int32),
        "stream": np.full((len(prompts), 1), stream, np.bool_),
    }
    return fake_triton.InferenceRequest({**inputs, **more}, decoupled=decoupled)


def told(asked: fake_triton.InferenceRequest) -> list[str]:
    return [strings(answer["text_output"])[0] for answer in asked.answers()]


@pytest.mark.parametrize("text", ["hello hello world", "naïve 你好 🎉!"])
def test_a_stream_tells_the_text_in_whole_characters(bls: Make, text: str) -> None:
    made, _ = bls()
    asked = request(text)
    made.execute([asked])
    pieces = told(asked)
    assert "".join(pieces) == text
    assert len(pieces) > 2
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_whole_answer_is_one_answer(bls: Make) -> None:
    for decoupled in (True, False):
        made, _ = bls(decoupled=decoupled)
        asked = request("hello world", stream=False, decoupled=decoupled)
        made.execute([asked])
        assert told(asked) == ["hello world"]
        assert len(asked.sender.sent) == 1


def test_accumulated_answers_hold_the_text_so_far(bls: Make) -> None:
    made, _ = bls(accumulate_tokens="true")
    asked = request("hello 你好")
    made.execute([asked])
    pieces = told(asked)
    assert pieces[-1] == "hello 你好"
    assert all(later.startswith(earlier) for earlier, later in pairwise(pieces))


def test_log_probs_come_when_they_are_asked_for(bls: Make) -> None:
    made, _ = bls()
    plain, logged = request("hello"), request("hello", return_log_probs=np.ones((1,), np.bool_))
    made.execute([plain, logged])
    assert not any("cum_log_probs" in answer for answer in plain.answers())
    assert all("output_log_probs" in answer for answer in logged.answers())


def test_what_the_client_asks_reaches_the_model_under_its_names(bls: Make) -> None:
    made, siblings = bls()
    asked = request("hello", top_k=np.array([[3]], np.int32), seed=np.array([[9]], np.uint64), stop_words=texts(["END"]))
    made.execute([asked])
    asked.answers()
    sent = siblings.asked[-1][1]
    assert sent["runtime_top_k"].tolist() == [[3]]
    assert sent["seed"].tolist() == [[9]]
    assert sent["streaming"].tolist() == [[True]]
    assert len(words(sent["stop_words_list"][0])) == 1


def test_a_batch_is_answered_row_by_row(bls: Make) -> None:
    made, _ = bls()
    whole, stream = request("hello", "hello world", stream=False), request("hello", "hello world")
    made.execute([whole, stream])
    assert whole.answers()[0]["text_output"].tolist() == [[b"hello"], [b"hello world"]]
    rows = {0: "", 1: ""}
    for answer in stream.answers():
        rows[int(answer["batch_index"].flat[0])] += strings(answer["text_output"])[0]
    assert rows == {0: "hello", 1: "hello world"}


def test_streams_at_once_are_not_mixed(bls: Make) -> None:
    made, _ = bls()
    prompts = [f"hello {number} world" for number in range(20)]
    asked = [request(prompt) for prompt in prompts]
    made.execute(asked)
    assert ["".join(told(each)) for each in asked] == prompts


@pytest.mark.parametrize("stream", [True, False])
def test_a_cancelled_request_stops_the_model_and_ends_in_silence(bls: Make, stream: bool) -> None:
    made, siblings = bls()
    siblings.endless = True
    asked = request("hello", stream=stream)
    made.execute([asked])
    assert siblings.speaking.wait(PATIENCE)  # who cancels before the model is asked has nothing to stop
    asked.sender.cancelled = True
    assert asked.error() is None
    assert asked.sender.sent[-1] == (None, fake_triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    made.finalize()  # waits for what was asked of the model
    assert siblings.stopped


def test_cancelling_a_model_that_answers_whole_is_an_error(bls: Make) -> None:
    made, siblings = bls(decoupled=False)
    asked = request("hello", stream=False, decoupled=False)
    asked.sender.cancelled = True
    siblings.preprocessing = SlowPreprocessing(siblings.preprocessing, asked)
    made.execute([asked])
    error = asked.error()
    assert error
    assert error.code() == fake_triton.TritonError.CANCELLED


def test_more_requests_than_may_wait_are_refused(bls: Make) -> None:
    made, siblings = bls(max_queued="2")
    siblings.endless = True
    carried = [request("hello") for _ in range(STREAMS_PER_INSTANCE)]
    waiting, beyond = [request("hello"), request("hello")], request("hello")
    made.execute([*carried, *waiting, beyond])
    error = beyond.error()
    assert error
    assert error.code() == fake_triton.TritonError.UNAVAILABLE
    assert "limits.max_queued" in error.message()
    waiting[0].sender.cancelled = True  # and is never begun
    for each in carried:
        each.sender.cancelled = True
    for each in (*carried, waiting[0]):
        each.answers()
    waiting[1].sender.cancelled = True
    waiting[1].answers()
    assert [name for name, _ in siblings.asked].count("x-preprocessing") == len(carried) + 1


class SlowPreprocessing:
    """Ends when the watch has seen that the request was cancelled."""

    def __init__(self, real: Any, asked: fake_triton.InferenceRequest) -> None:
        self.real, self.asked = real, asked

    def execute(self, requests: Sequence[fake_triton.InferenceRequest]) -> Any:
        assert self.asked.sender.seen.wait(PATIENCE)
        return self.real.execute(requests)


def test_a_refusal_of_the_model_reaches_the_client_with_final(bls: Make) -> None:
    made, siblings = bls()
    siblings.complaint = "prompt length (9) exceeds maximum input length (8)"
    asked = request("hello")
    made.execute([asked])
    error = asked.error()
    assert error
    assert error.message() == siblings.complaint
    assert len(asked.sender.sent) == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("failure", "told"), [("no memory", "no memory"), ("death", "ended in the middle of an answer")])
def test_an_engine_failing_or_dying_midway_is_an_error(bls: Make, stream: bool, failure: str, told: str) -> None:
    made, siblings = bls()
    siblings.endless, siblings.failure = True, failure
    asked = request("hello", stream=stream)
    made.execute([asked])
    error = asked.error()
    assert error
    assert told in error.message()
    assert len(asked.answers()) == stream


def test_an_engine_that_never_answers_is_an_error(bls: Make) -> None:
    made, siblings = bls()
    siblings.deaf = True
    asked = request("hello")
    made.execute([asked])
    error = asked.error()
    assert error
    assert error.message() == "x-tensorrt_llm did not answer"


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({"text_input": texts([b"\xff"]), "max_tokens": np.array([[3]], np.int32)}, "UTF-8"),
        ({"text_input": texts(["a"]), "max_tokens": np.array([[-3]], np.int32)}, "max_tokens"),
        ({"text_input": texts(["a"])}, "max_tokens cannot be left out"),
        ({"max_tokens": np.array([[3]], np.int32)}, "text_input cannot be left out"),
    ],
)
def test_a_wrong_request_ends_in_a_clear_error(bls: Make, inputs: dict[str, Array], complaint: str) -> None:
    made, _ = bls()
    asked, good = fake_triton.InferenceRequest(inputs), request("hello")
    made.execute([asked, good])
    error = asked.error()
    assert error
    assert complaint in error.message()
    assert "".join(told(good)) == "hello"


def test_a_model_that_answers_whole_refuses_to_stream(bls: Make) -> None:
    made, _ = bls(decoupled=False)
    asked = request("hello", decoupled=False)
    made.execute([asked])
    error = asked.error()
    assert error
    assert "serve.stream" in error.message()
