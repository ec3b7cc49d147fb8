"""Requests and responses as KServe's tensors, with no server: names by version, log-probabilities however they are told."""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import originals
from forge.client.answer import Answer, Finish, Hearing, Piece
from forge.client.response import Ear
from forge.client.tensors import inputs_of
from forge.client.types import Acceptance, Chunk, ModelMetadata, Request, TensorMetadata
from forge.errors import InferenceError

VERSIONS = originals.versions("0.19.0")
FULL = Request(
    "m",
    "hello",
    5,
    temperature=0.5,
    top_k=3,
    top_p=0.9,
    seed=2**63,
    beam_width=2,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.2,
    min_tokens=2,
    stop=("a", "b"),
    bad=("c",),
    n=2,
    length_penalty=0.5,
    end_id=1,
    pad_id=0,
    return_log_probs=True,
    return_perf_metrics=True,
)
"""All that NVIDIA's bls and ensemble have inputs for."""


def tensors(**types: str) -> dict[str, TensorMetadata]:
    return {name: TensorMetadata(name, kind, (-1, -1 if kind == "BYTES" else 1)) for name, kind in types.items()}


def skeleton(version: str, role: str) -> ModelMetadata:
    """What a config.pbtxt of NVIDIA's says of its inputs."""
    place = originals.skeletons(version)
    assert place
    return metadata(place / role / "config.pbtxt")


def metadata(file: Path) -> ModelMetadata:
    stated = file.read_text(encoding="utf-8").partition("\noutput [")[0]
    found = re.findall(r'name: "(\w+)"\s+data_type: TYPE_(\w+)', stated)
    return ModelMetadata("m", tensors(**{name: kind.replace("STRING", "BYTES") for name, kind in found}), {})


def sent(request: Request, model: ModelMetadata) -> dict[str, bytes]:
    return {each.name: each.raw for each in inputs_of(request, model)}


@pytest.mark.parametrize("role", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.skipif(not VERSIONS, reason=originals.MISSING)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_sampling_word_reaches_nvidias_models_of_each_version(role: str, version: str) -> None:
    seed, least = ("random_seed", "min_length") if version.startswith("0.19") else ("seed", "min_tokens")
    found = sent(FULL, skeleton(version, role))
    assert found[seed] == struct.pack("<Q", 2**63)
    assert found[least] == struct.pack("<i", 2)
    assert found["num_return_sequences"] == struct.pack("<i", 2)
    assert {"temperature", "top_k", "top_p", "beam_width", "stop_words", "bad_words", "length_penalty"} <= set(found)
    assert {"return_log_probs", "return_perf_metrics", "end_id", "pad_id", "exclude_input_in_output", "stream"} <= set(found)


@pytest.mark.skipif(not VERSIONS, reason=originals.MISSING)
def test_ids_go_to_tensorrt_llm_under_its_own_names() -> None:
    asked = replace(
        FULL,
        prompt="",
        tokens=(7, 8, 9),
        stop=(),
        bad=(),
        early_stopping=True,
        top_p_min=0.1,
        top_p_decay=0.9,
        top_p_reset_ids=4,
    )
    found = sent(asked, skeleton(VERSIONS[-1], "tensorrt_llm"))
    assert found["input_ids"] == struct.pack("<3i", 7, 8, 9)
    assert found["input_lengths"] == struct.pack("<i", 3)
    renamed = {"request_output_len", "runtime_top_k", "runtime_top_p", "len_penalty", "streaming", "early_stopping"}
    assert renamed | {"runtime_top_p_min", "runtime_top_p_decay", "runtime_top_p_reset_ids"} <= set(found)


@pytest.mark.skipif(not originals.llmapi(), reason=originals.MISSING)
def test_llmapi_is_asked_by_its_own_names() -> None:
    file = originals.llmapi()
    assert file
    model = metadata(file)
    found = sent(Request("m", "hello", 5, temperature=0.5, seed=3, stop=("a",), return_log_probs=True), model)
    assert found["sampling_param_seed"] == struct.pack("<Q", 3)
    assert found["return_cumulative_logprob"] == b"\x01"
    with pytest.raises(InferenceError, match="no input for n") as caught:
        sent(Request("m", "hello", 5, n=2), model)
    assert "sampling_param_temperature" in caught.value.hint


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: Sequence[int]
    datatype: str = "FP32"


@dataclass(frozen=True)
class Response:
    outputs: Sequence[Tensor]
    raw_output_contents: Sequence[bytes]


def response(*texts: str, **arrays: object) -> Response:
    """As a model with text sends it: whole numbers as int32, words as bytes, others as float32."""
    outputs: list[Tensor] = []
    raws: list[bytes] = []
    for name, values in (({"text_output": texts} if texts else {}) | arrays).items():
        array = np.asarray(values)
        if array.dtype.kind == "U":
            outputs.append(Tensor(name, array.shape, "BYTES"))
            raws.append(b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in array.tolist()))
            continue
        outputs.append(Tensor(name, (1, *array.shape)))
        raws.append(array.astype(np.int32 if array.dtype.kind == "i" else np.float32).tobytes())
    return Response(outputs, raws)


TEXT = ModelMetadata("m", tensors(text_input="BYTES", max_tokens="INT32"), {})
LOGGED = Request("m", "hello", 5, return_log_probs=True)


def heard(request: Request, *responses: Response, model: ModelMetadata = TEXT) -> list[Chunk]:
    ear = Ear(request, model)
    last = len(responses) - 1
    return [chunk for place, each in enumerate(responses) for chunk in ear.hear(each, float(place + 1), final=place == last)]


def answer(request: Request, *responses: Response, model: ModelMetadata = TEXT) -> Answer:
    hearing = Hearing(request)
    for chunk in heard(request, *responses, model=model):
        hearing.hear(chunk)
    return hearing.answer()


@pytest.mark.parametrize("stream", [True, False])
def test_llmapis_end_is_heard_and_its_numbers_become_words(stream: bool) -> None:
    """It sends str(value) for all that is asked for: None while there is none, and a float in letters."""
    said = [response("a", finish_reason=["None"], cumulative_logprob=["-0.5"])] if stream else []
    last = response("ab", finish_reason=["length"], cumulative_logprob=["-1.75"])
    found = answer(replace(LOGGED, stream=stream), *said, last, model=metadata_of_llmapi())
    (reply,) = found.replies
    assert (reply.text, reply.finish, reply.log_prob) == ("ab", Finish.LENGTH, -1.75)


def metadata_of_llmapi() -> ModelMetadata:
    return ModelMetadata("m", tensors(text_input="BYTES", sampling_param_max_tokens="INT32"), {}, accumulates=True)


def test_why_an_answer_ended_is_asked_where_models_say_it() -> None:
    model = ModelMetadata("m", tensors(text_input="BYTES", max_tokens="INT32", return_finish_reason="BOOL"), {})
    assert sent(Request("m", "hello", 5, stream=False), model)["return_finish_reason"] == b"\x01"
    assert "return_finish_reason" not in sent(Request("m", "hello", 5), TEXT)


SO_FAR = ([-0.5], [-0.5, -0.25], [-0.5, -0.25, -0.25])
NEW = ([-0.5], [-0.25], [-0.25])


@pytest.mark.parametrize("told", [SO_FAR, NEW], ids=["all so far, as TensorRT-LLM", "the new ones"])
def test_log_probabilities_of_a_stream_are_told_once(told: Sequence[Sequence[float]]) -> None:
    pieces = [response(text, output_log_probs=[row]) for text, row in zip("abc", told, strict=True)]
    found = answer(LOGGED, *pieces)
    assert found.replies[0].pieces == (Piece("a", (-0.5,)), Piece("b", (-0.25,)), Piece("c", (-0.25,)))


def test_beams_of_unlike_length_lose_tensorrt_llms_padding() -> None:
    whole = response("ab", "a", output_log_probs=[[-0.5, -0.25], [-2.0, -1.0]], cum_log_probs=[-0.75, -2.0])
    first, second = answer(replace(LOGGED, stream=False, beam_width=2), whole).replies
    assert (first.log_probs, second.log_probs) == ((-0.5, -0.25), (-2.0,))
    assert (first.log_prob, second.log_prob) == (-0.75, -2.0)


def test_beams_of_a_stream_may_overtake_each_other() -> None:
    pieces = (response("a", "b"), response("bc", "ad"))
    chunks = heard(replace(LOGGED, beam_width=2), *pieces)
    assert all(chunk.whole for chunk in chunks)
    assert [reply.text for reply in answer(replace(LOGGED, beam_width=2), *pieces).replies] == ["bc", "ad"]


def test_a_response_of_several_sequences_counts_its_tokens_once() -> None:
    counted = Request("m", "hello", 5, beam_width=2, return_token_counts=True)
    pieces = (
        response("a", "b", num_input_tokens=[3], num_output_tokens=[2]),
        response("bc", "ad", num_input_tokens=[3], num_output_tokens=[4]),
    )
    for request in (counted, replace(counted, stream=False)):
        found = answer(request, *(pieces if request.stream else pieces[1:]))
        assert (found.input_tokens, found.output_tokens, found.perf.counted) == (3, 4, True)


def test_a_character_that_spans_tokens_keeps_all_their_probabilities() -> None:
    pieces = [response(text, output_log_probs=[row]) for text, row in zip(("", "", "\N{ROCKET}"), SO_FAR, strict=True)]
    assert answer(LOGGED, *pieces).replies[0].pieces == (Piece("\N{ROCKET}", (-0.5, -0.25, -0.25)),)


def test_a_model_that_accumulates_is_heard_once() -> None:
    repeating = replace(TEXT, accumulates=True)
    assert [chunk.text for chunk in heard(LOGGED, response("a"), response("ab"), model=repeating)] == ["a", "b"]


SO_FAR_CUT = ("x", "x\ufffd", "x\ufffd\ufffd", "x猫", "x猫\ufffd\ufffd", "x猫é", "x猫é of")


def test_a_character_spanning_tokens_is_told_when_whole() -> None:
    repeating = replace(TEXT, accumulates=True)
    asked = replace(LOGGED, return_log_probs=False)
    chunks = heard(asked, *(response(text) for text in SO_FAR_CUT), model=repeating)
    assert [chunk.text for chunk in chunks] == ["x", "", "", "猫", "", "é", " of"]


def test_bytes_no_token_completes_are_told_at_the_end() -> None:
    repeating = replace(TEXT, accumulates=True)
    asked = replace(LOGGED, return_log_probs=False)
    pieces = (response("x"), response("x\ufffd"), response("x\ufffd\ufffd"))
    for ends in (pieces, (*pieces, response())):
        chunks = heard(asked, *ends, model=repeating)
        assert "".join(chunk.text for chunk in chunks) == "x\ufffd\ufffd"
        assert [chunk.final for chunk in chunks] == [False] * (len(ends) - 1) + [True]
    assert [chunk.text for chunk in heard(replace(asked, stream=False), response("x\ufffd"), model=repeating)] == ["x\ufffd"]


def test_text_broken_for_a_moment_is_not_told_twice() -> None:
    """A run of byte tokens is decoded whole or not at all: the rocket is broken again until its neighbour is whole."""
    repeating = replace(TEXT, accumulates=True)
    said = (response("\N{ROCKET}"), response("\ufffd" * 5), response("\N{ROCKET}é"))
    chunks = heard(replace(LOGGED, return_log_probs=False), *said, model=repeating)
    assert [chunk.text for chunk in chunks] == ["\N{ROCKET}", "", "é"]


def test_what_speculation_accepted_is_told_where_the_model_reports_it() -> None:
    told = {"acceptance_rate": [0.75], "total_accepted_draft_tokens": [3], "total_draft_tokens": [4]}
    measured = replace(LOGGED, return_perf_metrics=True)
    assert answer(measured, response("a", **told)).acceptance == Acceptance(0.75, 3, 4)
    assert answer(LOGGED, response("a", **told)).acceptance is None
    none = {"acceptance_rate": [0.0], "total_accepted_draft_tokens": [0], "total_draft_tokens": [0]}
    assert answer(measured, response("a", **none)).acceptance is None


def test_a_silent_end_is_the_final_chunk() -> None:
    assert heard(LOGGED, response("a"), response()) == [Chunk("a"), Chunk("", final=True)]


def test_speed_is_counted_in_tokens_where_they_are_known() -> None:
    pieces = [response(text, output_log_probs=[row]) for text, row in zip("abc", SO_FAR, strict=True)]
    perf = answer(LOGGED, *pieces).perf
    assert (perf.first, perf.total, perf.tokens, perf.counted) == (1.0, 3.0, 3, True)
    assert (perf.inter_token, perf.rate) == (1.0, 1.0)
    guessed = answer(replace(LOGGED, return_log_probs=False), *pieces).perf
    assert (guessed.tokens, guessed.counted) == (3, False)


def test_an_answer_is_below_when_no_sequence_reaches_the_threshold() -> None:
    two = response("ab", "a", cum_log_probs=[-0.75, -2.0])
    found = answer(replace(LOGGED, stream=False, n=2), two)
    assert [found.below(threshold) for threshold in (-1.0, -0.5)] == [False, True]
    assert [reply.below(-1.0) for reply in found.replies] == [False, True]
    assert answer(replace(LOGGED, return_log_probs=False), response("a")).below(-1.0) is None
