"""The twin backend, spoken to as Triton would: requests in, responses out, all decoded together by one loop."""

import importlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pytest
from numpy.typing import NDArray

import fake_triton
import tiny_checkpoints
from fake_triton import InferenceRequest, TritonError
from forge.repository.skeletons.pipe import PARAMETER, Pipe, PipeFault
from patience import PATIENCE

PROMPT = [7, 3, 150, 42, 9, 77, 12]
OUTPUTS = {
    "output_ids": "TYPE_INT32",
    "sequence_length": "TYPE_INT32",
    "cum_log_probs": "TYPE_FP32",
    "output_log_probs": "TYPE_FP32",
    "context_logits": "TYPE_FP32",
    "generation_logits": "TYPE_FP16",
    "batch_index": "TYPE_INT32",
    "sequence_index": "TYPE_INT32",
    "kv_cache_alloc_new_blocks": "TYPE_INT32",
}
KINDS: Mapping[str, type] = {
    "temperature": np.float32,
    "runtime_top_p": np.float32,
    "len_penalty": np.float32,
    "seed": np.uint64,
    "random_seed": np.uint64,
    "streaming": np.bool_,
    "stop": np.bool_,
    "return_log_probs": np.bool_,
    "return_context_logits": np.bool_,
    "return_generation_logits": np.bool_,
    "exclude_input_in_output": np.bool_,
}


class Model(Protocol):
    def initialize(self, args: Mapping[str, str]) -> None: ...
    def execute(self, requests: Sequence[InferenceRequest]) -> None: ...
    def finalize(self) -> None: ...


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny_checkpoints.make("llama", folder)
    return folder


Start = Callable[..., Model]


@pytest.fixture
def start(checkpoint: Path) -> Iterator[Start]:
    """Starts a model on the checkpoint, with parameters of its config.pbtxt; all are finalized at the end."""
    fake_triton.install()
    backend = importlib.import_module("forge.twin.backend")
    started: list[Model] = []

    def begin(*, folder: Path = checkpoint, decoupled: bool = True, places: int = 8, **parameters: str) -> Model:
        stated = {"gpt_model_path": str(folder), "max_beam_width": "3", "cancellation_check_period_ms": "0", **parameters}
        config = {
            "max_batch_size": places,
            "model_transaction_policy": {"decoupled": decoupled},
            "parameters": {name: {"string_value": value} for name, value in stated.items()},
            "output": [{"name": name, "data_type": kind} for name, kind in OUTPUTS.items()],
        }
        model = cast("Model", backend.TritonPythonModel())
        model.initialize({"model_config": json.dumps(config), "model_name": "tensorrt_llm"})
        started.append(model)
        return model

    yield begin
    for model in started:
        model.finalize()


def request(*prompts: list[int], decoupled: bool = True, name: str = "", **given: Any) -> InferenceRequest:
    """A request for one answer per prompt; scalars are given to every row."""
    rows = prompts or (PROMPT,)
    longest = max(map(len, rows))
    arrays: dict[str, NDArray[np.generic]] = {
        "input_ids": np.array([[*row, *[0] * (longest - len(row))] for row in rows], np.int32),
        "input_lengths": np.array([[len(row)] for row in rows], np.int32),
    }
    for tensor, value in {"request_output_len": 12, "exclude_input_in_output": True, **given}.items():
        array: NDArray[np.generic] = np.array(value).astype(np.dtype(KINDS.get(tensor, np.int32)))
        arrays[tensor] = np.full((len(rows), 1), array) if array.ndim == 0 else array
    return InferenceRequest(arrays, id=name, decoupled=decoupled)


def tokens(asked: InferenceRequest) -> list[int]:
    """All tokens of all responses, on end, of the first beam."""
    answers = asked.answers()
    assert asked.error() is None
    return [int(token) for answer in answers for token in answer["output_ids"][0, 0]]


def ask(model: Model, *asked: InferenceRequest) -> list[int]:
    model.execute(asked)
    return tokens(asked[0])


def refusal(model: Model, asked: InferenceRequest) -> TritonError:
    model.execute([asked])
    error = asked.error()
    assert error is not None
    assert len(asked.sender.sent) == 1, "an immediate error and FINAL go in one send"
    return error


def test_a_stream_says_by_tokens_what_a_whole_answer_says(start: Start) -> None:
    model = start()
    streamed = request(streaming=True)
    assert ask(model, streamed) == ask(model, request())
    assert [answer["output_ids"].shape for answer in streamed.answers()] == [(1, 1, 1)] * 12
    assert [flags for _, flags in streamed.sender.sent] == [0] * 11 + [1]


def test_an_answer_carries_the_prompt_unless_it_is_excluded(start: Start) -> None:
    model = start()
    asked = request(exclude_input_in_output=False)
    assert ask(model, asked) == PROMPT + ask(model, request())
    assert asked.answers()[0]["sequence_length"].tolist() == [[len(PROMPT) + 12]]


def test_eight_requests_at_once_say_what_each_says_alone(start: Start) -> None:
    model = start()
    hows: list[dict[str, Any]] = [{"runtime_top_p": 0.95, "seed": seed, "temperature": 1.5} for seed in range(6)]
    hows += [{}, {"beam_width": 3}]
    prompts = [PROMPT[: 1 + row % 7] * (1 + row * 9) for row in range(8)]
    alone = [ask(model, request(prompt, **how)) for prompt, how in zip(prompts, hows, strict=True)]
    together = [request(prompt, **how) for prompt, how in zip(prompts, hows, strict=True)]
    model.execute(together)
    assert [tokens(one) for one in together] == alone
    assert len({tuple(said) for said in alone}) == 8


def test_more_requests_than_places_are_all_answered(start: Start) -> None:
    model = start(places=2)
    wanted = ask(model, request())
    many = [request() for _ in range(7)]
    model.execute(many)
    assert [tokens(one) for one in many] == [wanted] * 7


def test_seeds_of_both_spellings_mean_the_same(start: Start) -> None:
    model = start()
    how: dict[str, Any] = {"runtime_top_p": 1.0}
    first = ask(model, request(seed=5, **how))
    assert first == ask(model, request(random_seed=5, **how)) != ask(model, request(seed=6, **how))


def test_every_row_of_a_batch_is_answered_with_its_index(start: Start) -> None:
    model = start()
    asked = request(PROMPT, PROMPT[:2])
    model.execute([asked])
    found = {int(answer["batch_index"][0, 0]): answer["output_ids"][0, 0].tolist() for answer in asked.answers()}
    assert found == {0: ask(model, request(PROMPT)), 1: ask(model, request(PROMPT[:2]))}


def test_a_batch_without_decoupling_is_answered_at_once_padded(start: Start) -> None:
    model = start(decoupled=False)
    first, second = (ask(model, request(row, decoupled=False)) for row in (PROMPT, PROMPT[:2]))
    asked = request(PROMPT, PROMPT[:2], decoupled=False, request_output_len=[[12], [5]], pad_id=0)
    model.execute([asked])
    answer = asked.answers()[0]
    assert answer["output_ids"].tolist() == [[first], [second[:5] + [0] * 7]]
    assert answer["sequence_length"].tolist() == [[12], [5]]


def test_several_samples_of_one_request_differ_and_carry_their_index(start: Start) -> None:
    model = start()
    how: dict[str, Any] = {"runtime_top_p": 1.0, "seed": 3}
    asked = request(num_return_sequences=3, **how)
    model.execute([asked])
    found = {int(answer["sequence_index"][0, 0]): tuple(answer["output_ids"][0, 0]) for answer in asked.answers()}
    assert sorted(found) == [0, 1, 2]
    assert len(set(found.values())) == 3
    assert list(found[0]) == ask(model, request(**how))


def test_beams_come_best_first_in_one_response_even_streamed(start: Start) -> None:
    asked = request(beam_width=3, streaming=True, return_log_probs=True)
    start().execute([asked])
    (answer,) = asked.answers()
    assert answer["output_ids"].shape == (1, 3, 12)
    scores = cast("list[float]", answer["cum_log_probs"][0].tolist())
    assert scores == sorted(scores, reverse=True)


def test_log_probabilities_sum_to_the_cumulative_one(start: Start) -> None:
    model = start()
    whole, streamed = request(return_log_probs=True), request(return_log_probs=True, streaming=True)
    model.execute([whole, streamed])
    answer = whole.answers()[0]
    assert answer["output_log_probs"].shape == (1, 1, 12)
    total = float(np.asarray(answer["output_log_probs"], np.float64).sum())
    assert total < 0
    assert float(answer["cum_log_probs"][0, 0]) == pytest.approx(total, rel=1e-5)
    so_far = [one["output_log_probs"][0, 0].tolist() for one in streamed.answers()]
    logged = answer["output_log_probs"][0, 0].tolist()
    assert so_far == [logged[: place + 1] for place in range(len(logged))]
    assert float(streamed.answers()[-1]["cum_log_probs"][0, 0]) == pytest.approx(total, rel=1e-5)


def test_logits_are_given_when_asked_for_in_the_declared_type(start: Start) -> None:
    asked = request(return_context_logits=True, return_generation_logits=True)
    said = ask(start(), asked)
    (answer,) = asked.answers()
    assert answer["context_logits"].shape == (1, len(PROMPT), tiny_checkpoints.VOCABULARY)
    assert answer["generation_logits"].dtype == np.float16
    assert answer["generation_logits"][0, 0].argmax(axis=-1).tolist() == said
    assert int(answer["context_logits"][0, -1].argmax()) == said[0]


def test_only_wanted_outputs_are_sent(start: Start) -> None:
    asked = request()
    asked.wanted = ["output_ids", "sequence_length"]
    start().execute([asked])
    assert set(asked.answers()[0]) == {"output_ids", "sequence_length"}


def test_the_end_token_ends_an_answer_and_is_left_out(start: Start) -> None:
    model = start()
    said = ask(model, request())
    end = said[4]
    assert ask(model, request(end_id=end)) == said[: said.index(end)]
    streamed = request(end_id=end, streaming=True)
    assert ask(model, streamed) == said[: said.index(end)]


def test_stop_and_bad_words_are_read_with_their_offsets(start: Start) -> None:
    model = start()
    said = ask(model, request())
    stopped = ask(model, request(stop_words_list=[[[5, said[2], said[3], 0], [1, 3, -1, -1]]]))
    assert stopped == said[:4]
    assert said[0] not in ask(model, request(bad_words_list=[[[said[0]], [1]]]))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"request_output_len": 0}, "request_output_len is 0"),
        ({"request_output_len": 600}, "exceeds the model's max_seq_len (512)"),
        ({"input_lengths": [[0]]}, "input_lengths is 0"),
        ({"input_ids": [[5, 199]], "input_lengths": 2}, "token 199"),
        ({"input_ids": [[5, -1]], "input_lengths": 2}, "token -1"),
        ({"beam_width": 4}, "max_beam_width 3"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"runtime_top_p": 1.5}, "runtime_top_p is 1.5"),
        ({"runtime_top_k": -3}, "runtime_top_k is -3"),
        ({"end_id": 4000}, "end_id is 4000"),
        ({"stop_words_list": [[[3, 4], [9, -1]]]}, "stop_words_list"),
        ({"bad_words_list": [[[300], [1]]]}, "outside the vocabulary"),
        ({"draft_input_ids": [[3, 4]]}, "draft_input_ids"),
        ({"beam_width": 2, "return_context_logits": True}, "return_context_logits"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_alone(start: Start, given: dict[str, Any], problem: str) -> None:
    model, other = start(), request()
    wrong = request(**given)
    model.execute([other])
    error = refusal(model, wrong)
    assert problem in error.message()
    assert error.code() == TritonError.INVALID_ARG
    assert len(tokens(other)) == 12


def test_streaming_from_a_model_that_is_not_decoupled_is_refused(start: Start) -> None:
    error = refusal(start(decoupled=False), request(streaming=True, decoupled=False))
    assert "decoupled" in error.message()


def test_limits_of_the_build_bound_a_request(start: Start, tmp_path: Path) -> None:
    tiny_checkpoints.make("llama", tmp_path)
    (tmp_path / "build_config.json").write_text(json.dumps({"max_input_len": 5, "max_seq_len": 20, "max_beam_width": 2}))
    model = start(folder=tmp_path)
    assert "max_input_len (5)" in refusal(model, request()).message()
    assert "max_seq_len (20)" in refusal(model, request(PROMPT[:4], request_output_len=17)).message()
    assert "max_beam_width 2" in refusal(model, request(PROMPT[:4], beam_width=3)).message()
    assert len(ask(model, request(PROMPT[:4], request_output_len=16))) == 16


def test_a_cancelled_stream_ends_empty_and_the_others_continue(start: Start) -> None:
    model = start()
    leaving, staying = request(streaming=True, request_output_len=400), request(request_output_len=60)

    def leave(count: int) -> None:
        leaving.sender.cancelled = count >= 3

    leaving.sender.after_send = leave
    model.execute([leaving, staying])
    assert len(tokens(staying)) == 60
    leaving.answers()
    assert leaving.sender.sent[-1] == (None, 1)
    assert len(leaving.sender.sent) < 60


def test_a_response_triton_refuses_holds_up_no_other(start: Start) -> None:
    model = start()
    gone, staying = request(streaming=True), request(streaming=True)
    gone.sender.final.set()
    model.execute([gone, staying])
    assert len(tokens(staying)) == 12
    assert not gone.sender.sent


def test_a_stop_request_ends_the_stream_with_its_id(start: Start) -> None:
    model = start()
    going, other = request(streaming=True, request_output_len=400, name="a"), request(streaming=True, name="b")
    spoken = threading.Event()
    going.sender.after_send = lambda count: spoken.set()
    model.execute([going, other])
    assert spoken.wait(PATIENCE)
    stop = request(stop=True, name="a")
    model.execute([stop])
    assert stop.answers() == []
    going.answers()
    assert going.sender.sent[-1] == (None, 1)
    assert len(going.sender.sent) < 400
    assert len(tokens(other)) == 12


def test_finalizing_ends_what_is_under_way(start: Start) -> None:
    model = start()
    asked = request(streaming=True, request_output_len=500)
    model.execute([asked])
    model.finalize()
    assert asked.sender.final.is_set()


def test_a_folder_without_a_model_stops_the_load(start: Start, tmp_path: Path) -> None:
    with pytest.raises(fake_triton.TritonModelException, match=r"config\.json is missing"):
        start(folder=tmp_path)


def test_a_parameter_that_is_no_number_stops_the_load(start: Start) -> None:
    with pytest.raises(fake_triton.TritonModelException, match="max_beam_width is 'many'"):
        start(max_beam_width="many")


def test_an_unfilled_placeholder_counts_as_absent(start: Start) -> None:
    assert "max_beam_width 1" in refusal(start(max_beam_width="${max_beam_width}"), request(beam_width=2)).message()


def piped(pipe: Pipe, **given: Any) -> InferenceRequest:
    asked = request(**given)
    asked.given = json.dumps({PARAMETER: pipe.name})
    return asked


def test_answers_by_a_pipe_are_those_of_triton(start: Start) -> None:
    model = start()
    kinds: tuple[dict[str, Any], ...] = ({"streaming": True}, {}, {"num_return_sequences": 3, "return_log_probs": True})
    for given in kinds:
        plain, pipe = request(**given), Pipe()
        asked = piped(pipe, **given)
        model.execute([plain])
        expected = plain.answers()
        model.execute([asked])
        found = list(pipe.read())
        pipe.close()
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
        assert asked.answers() == []
        assert asked.sender.sent == [(None, 1)]


def test_a_reader_that_hangs_up_ends_its_request(start: Start) -> None:
    model = start()
    pipe, late = Pipe(), Pipe()
    asked = piped(pipe, request_output_len=400, streaming=True)
    model.execute([asked])
    next(pipe.read())
    pipe.hang_up()
    late.close()
    refused = piped(late)
    model.execute([refused])
    assert [each.error() for each in (asked, refused)] == [None, None]
    assert [each.sender.sent for each in (asked, refused)] == [[(None, 1)]] * 2
    assert len(ask(model, request())) == 12
    pipe.close()


def test_a_model_that_is_unloaded_says_so_by_the_pipe(start: Start) -> None:
    model = start()
    pipe = Pipe()
    model.execute([piped(pipe, request_output_len=400, streaming=True)])
    answers = pipe.read()
    next(answers)
    threading.Thread(target=model.finalize).start()
    with pytest.raises(PipeFault, match="stopped, or unloaded"):
        list(answers)
    pipe.close()


@pytest.mark.parametrize("name", ["/run/docker.sock", "", "A" * 32, 7])
def test_a_pipe_of_another_name_is_refused(start: Start, name: object) -> None:
    asked = request()
    asked.given = json.dumps({PARAMETER: name})
    assert refusal(start(), asked).message() == "parameter forge_pipe is for tensorrt_llm_bls alone"
