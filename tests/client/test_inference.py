"""The client against a real Triton whose models speak the tensors of tensorrt_llm_bls."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

import tiny_models
from forge.client.grpc import TritonClient
from forge.client.types import Chunk, Request
from forge.errors import InferenceError
from patience import free_ports, soon
from triton_fixture import Serving

pytestmark = [pytest.mark.slow, pytest.mark.network]


@dataclass(frozen=True)
class Served:
    """Where the speaking models are: ``speaker`` streams, ``once`` answers once, ``mute`` takes only text.

    ``pytorch`` streams as NVIDIA's llmapi model does, ``whole`` is the same without streams.
    """

    address: str
    repository: Path

    def chunks(self, request: Request) -> list[Chunk]:
        return list(TritonClient().generate(self.address, request))


@pytest.fixture(scope="module")
def speakers(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("speaking")
    tiny_models.lay(repository, "speaker", tiny_models.SPEAKER, speaks=True, decoupled=True)
    tiny_models.lay(repository, "once", tiny_models.SPEAKER, speaks=True)
    tiny_models.lay(repository, "mute", tiny_models.IDENTITY, decoupled=False)
    tiny_models.ensemble(repository, "chain", "speaker")
    tiny_models.llmapi(repository, "pytorch", decoupled=True)
    tiny_models.llmapi(repository, "whole", decoupled=False)
    with serving.server(repository) as running:
        yield Served(f"127.0.0.1:{running.ports.grpc}", repository)


SAY = Request("speaker", "one two three", max_tokens=8)


@pytest.mark.parametrize("model", ["speaker", "chain"])
def test_a_stream_comes_in_pieces_with_a_final_chunk(speakers: Served, model: str) -> None:
    chunks = speakers.chunks(replace(SAY, model=model))
    assert [chunk.text for chunk in chunks] == ["one", "two", "three", ""]
    assert [chunk.final for chunk in chunks] == [False, False, False, True]


def test_the_first_piece_comes_before_the_last_is_made(speakers: Served) -> None:
    with closing(TritonClient().generate(speakers.address, replace(SAY, prompt="forever on"))) as answer:
        assert next(answer).text == "forever"  # the last would come in hours


def test_a_model_that_answers_once_gives_one_final_chunk(speakers: Served) -> None:
    assert speakers.chunks(replace(SAY, model="once", stream=False)) == [Chunk("one two three", final=True)]


def test_streaming_a_model_that_answers_once_names_the_way_out(speakers: Served) -> None:
    with pytest.raises(InferenceError, match="cannot stream") as caught:
        speakers.chunks(replace(SAY, model="once"))
    assert "--no-stream" in caught.value.hint


def test_values_arrive_under_the_names_and_types_of_the_model(speakers: Served) -> None:
    asked = replace(SAY, prompt="what", temperature=0.5, top_k=3, seed=2**63 + 1, stop=("ä", "ö ü"))
    (chunk,) = speakers.chunks(asked)
    assert chunk.final
    assert json.loads(chunk.text) == {
        "max_tokens": [8],
        "temperature": [0.5],
        "top_k": [3],
        "random_seed": [2**63 + 1],
        "stop_words": ["ä", " ä", "ö ü", " ö ü"],
    }


def test_what_is_left_out_is_left_to_the_server(speakers: Served) -> None:
    (chunk,) = speakers.chunks(replace(SAY, prompt="what"))
    assert json.loads(chunk.text)["temperature"] is None


def test_beams_are_told_apart(speakers: Served) -> None:
    chunks = speakers.chunks(replace(SAY, prompt="ja nein", beam_width=2))
    assert [(chunk.index, chunk.text) for chunk in chunks[:-1]] == [(0, "ja"), (1, "JA"), (0, "nein"), (1, "NEIN")]


def test_a_word_without_an_input_is_named(speakers: Served) -> None:
    with pytest.raises(InferenceError, match="no input for top_p, repetition_penalty"):
        speakers.chunks(replace(SAY, top_p=0.5, repetition_penalty=1.1))


def test_a_value_that_does_not_fit_its_type_is_named(speakers: Served) -> None:
    with pytest.raises(InferenceError, match="top_k 4294967296 does not fit INT32"):
        speakers.chunks(replace(SAY, top_k=2**32))


def test_a_model_without_text_input_or_length_is_explained(speakers: Served) -> None:
    with pytest.raises(InferenceError, match="no input for max_tokens"):
        speakers.chunks(replace(SAY, model="mute", stream=False))


def test_what_the_model_refuses_is_said_in_its_words(speakers: Served) -> None:
    with pytest.raises(InferenceError, match="exceeds maximum input length"):
        speakers.chunks(replace(SAY, prompt="fail"))


def test_llmapis_growing_texts_become_new_text_without_the_prompt(speakers: Served) -> None:
    """A piece that comes twice ("ha", "ha") is said twice."""
    chunks = speakers.chunks(replace(SAY, model="pytorch", prompt="ha ha äh haha"))
    assert [chunk.text for chunk in chunks] == ["ha", "ha", "äh", "haha"]
    assert [chunk.final for chunk in chunks] == [False, False, False, True]


def test_a_stop_word_that_llmapi_cuts_off_is_not_said(speakers: Served) -> None:
    chunks = speakers.chunks(replace(SAY, model="pytorch", prompt="one two END three", stop=("END",)))
    assert [chunk.text for chunk in chunks] == ["one", "two", ""]
    assert chunks[-1].final


@pytest.mark.parametrize("model", ["pytorch", "whole"])
def test_an_answer_of_llmapi_can_be_had_whole(speakers: Served, model: str) -> None:
    assert speakers.chunks(replace(SAY, model=model, stream=False)) == [Chunk("onetwothree", final=True)]


def test_values_arrive_under_llmapis_names_and_types(speakers: Served) -> None:
    asked = replace(SAY, model="pytorch", prompt="what", temperature=0.5, top_k=3, seed=2**63 + 1, stop=("ä", "ö ü"))
    (chunk,) = speakers.chunks(asked)
    told = {"max_tokens": [8], "temperature": [0.5], "top_k": [3], "seed": [2**63 + 1], "stop": ["ä", " ä", "ö ü", " ö ü"]}
    assert json.loads(chunk.text) == told


def test_llmapi_is_told_inputs_it_lacks_and_what_cannot_stream(speakers: Served) -> None:
    with pytest.raises(InferenceError, match="no input for min_tokens") as caught:
        speakers.chunks(replace(SAY, model="pytorch", min_tokens=3))
    assert "sampling_param_temperature" in caught.value.hint
    with pytest.raises(InferenceError, match="cannot stream"):
        speakers.chunks(replace(SAY, model="whole"))


def test_an_unknown_model_is_answered_with_those_that_are_ready(speakers: Served) -> None:
    with pytest.raises(InferenceError, match="no model 'gemma'") as caught:
        speakers.chunks(replace(SAY, model="gemma"))
    assert "speaker" in caught.value.hint


def test_no_server_is_said_with_what_to_do() -> None:
    with pytest.raises(InferenceError, match="no server answers") as caught:
        list(TritonClient().generate(f"127.0.0.1:{free_ports().grpc}", SAY))
    assert "forge serve" in caught.value.hint


def test_an_answer_that_takes_too_long_is_given_up(speakers: Served) -> None:
    with pytest.raises(InferenceError, match=r"within 2 s"):
        list(TritonClient(timeout=2.0).generate(speakers.address, replace(SAY, prompt="forever on")))


def test_closing_the_iterator_cancels_at_the_server(speakers: Served) -> None:
    note = speakers.repository / "speaker" / "cancelled"
    note.unlink(missing_ok=True)
    answer = TritonClient().generate(speakers.address, replace(SAY, prompt="forever on"))
    assert next(answer).text == "forever"
    answer.close()
    assert soon(note.exists)


def test_several_requests_stream_at_once(speakers: Served) -> None:
    prompts = [f"request {number} speaks" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(speakers.chunks, [replace(SAY, prompt=prompt) for prompt in prompts]))
    assert [" ".join(chunk.text for chunk in chunks[:-1]) for chunks in answers] == prompts
