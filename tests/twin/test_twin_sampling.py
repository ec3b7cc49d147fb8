"""How tokens are picked: TensorRT-LLM's meaning of every knob."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import tiny_checkpoints
from forge.twin.arrays import Floats
from forge.twin.asks import Ask, Beams
from forge.twin.beams import BeamSearch
from forge.twin.decoder import Decoder
from forge.twin.loading import load
from forge.twin.sampling import Picker, Sampling, Shaper, log_softmax
from forge.twin.voices import Line, Sample

END = 1


def logits(*probabilities: float) -> Floats:
    return np.log(np.array(probabilities, np.float32))


def shaped(sampling: Sampling, given: Floats, prompt: tuple[int, ...] = (0,), said: tuple[int, ...] = ()) -> Floats:
    shaper = Shaper(sampling, np.array(prompt), [END], len(given))
    for token in said:
        shaper.heard(token)
    return shaper(given)


def draws(sampling: Sampling, given: Floats, count: int = 4000) -> Counter[int]:
    pick = Picker(sampling, 0)
    return Counter(pick(given) for _ in range(count))


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(top_k=1, top_p=0.5), Sampling(top_p=0.9, temperature=0.0), Sampling(temperature=2)]
)
def test_the_likeliest_is_taken_where_nothing_is_left_to_chance(sampling: Sampling) -> None:
    assert draws(sampling, logits(0.3, 0.4, 0.2, 0.1), 50) == {1: 50}


def test_top_p_alone_draws_from_the_nucleus_in_proportion() -> None:
    found = draws(Sampling(top_p=0.75), logits(0.1, 0.5, 0.3, 0.1))
    assert set(found) == {1, 2}
    assert found[1] / 4000 == pytest.approx(5 / 8, abs=0.04)


def test_top_p_of_one_draws_from_all() -> None:
    found = draws(Sampling(top_p=1.0), logits(0.1, 0.5, 0.3, 0.1))
    assert [found[token] / 4000 for token in range(4)] == pytest.approx([0.1, 0.5, 0.3, 0.1], abs=0.04)


def test_top_k_keeps_k_and_top_p_cuts_within() -> None:
    given = logits(0.1, 0.4, 0.3, 0.2)
    assert set(draws(Sampling(top_k=3), given)) == {1, 2, 3}
    assert set(draws(Sampling(top_k=3, top_p=0.7), given)) == {1, 2}


def test_a_nucleus_wider_than_the_first_guess_is_still_whole() -> None:
    flat = np.zeros(5000, np.float32)
    found = draws(Sampling(top_p=0.9), flat)
    assert len(found) > 2000
    assert max(found) < 4501


def test_min_p_leaves_out_what_is_far_below() -> None:
    given = logits(0.5, 0.26, 0.2, 0.04)
    assert set(draws(Sampling(top_p=1.0, min_p=0.5), given)) == {0, 1}
    assert set(draws(Sampling(top_k=3, min_p=0.05), given)) == {0, 1, 2}
    assert set(draws(Sampling(top_p=1.0), given)) == {0, 1, 2, 3}


def test_one_seed_draws_alike_and_another_sample_draws_otherwise() -> None:
    given, sampling = np.zeros(1000, np.float32), Sampling(top_p=1.0, seed=2**64 - 1)
    first, again, other = (Picker(sampling, sample) for sample in (0, 0, 1))
    drawn = [[pick(given) for _ in range(8)] for pick in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_penalties_come_after_temperature_and_count_the_prompt() -> None:
    given = np.array([2.0, -2.0, 1.0, 4.0], np.float32)
    sampling = Sampling(temperature=2.0, repetition_penalty=1.25, presence_penalty=0.5, frequency_penalty=0.25)
    found = shaped(sampling, given, prompt=(0, 1), said=(0,))
    # token 0: 2/2/1.25 - .5 - .25*2; token 1: -2/2*1.25 - .5 - .25; the others only cool down
    np.testing.assert_allclose(found, [-0.2, -2.0, 0.5, 2.0], rtol=1e-6)


def test_min_tokens_forbids_the_end_until_then() -> None:
    given = logits(0.1, 0.8, 0.1)
    assert shaped(Sampling(min_tokens=2), given, said=(2,))[END] == -np.inf
    assert shaped(Sampling(min_tokens=2), given, said=(2, 2))[END] == given[END]


def test_bad_words_of_several_tokens_are_banned_when_completing() -> None:
    sampling, given = Sampling(bad_words=((3,), (2, 0))), logits(0.25, 0.25, 0.25, 0.25)
    assert np.flatnonzero(np.isinf(shaped(sampling, given, said=(1,)))).tolist() == [3]
    assert np.flatnonzero(np.isinf(shaped(sampling, given, said=(2,)))).tolist() == [0, 3]


def test_a_bias_is_added_and_given_logits_stay() -> None:
    given = logits(0.5, 0.3, 0.2)
    before = given.copy()
    found = shaped(Sampling(bias=np.array([-9.0, 0.0, 9.0], np.float32)), given)
    assert found.argmax() == 2
    np.testing.assert_array_equal(given, before)


def test_top_p_decays_to_its_floor_until_the_reset_token() -> None:
    given = logits(0.4, 0.3, 0.2, 0.1)
    pick = Picker(Sampling(top_p=1.0, top_p_decay=0.1, top_p_min=0.05, top_p_reset=9), 0)
    pick(given)
    assert {pick(given) for _ in range(50)} == {0}


def test_log_softmax_is_the_logarithm_of_the_probabilities() -> None:
    np.testing.assert_allclose(log_softmax(logits(0.5, 0.25, 0.25) + 7.0), np.log([0.5, 0.25, 0.25]), rtol=1e-5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny_checkpoints.make("llama", folder)
    return folder


def search(decoder: Decoder, ask: Ask) -> list[Line]:
    memory = decoder.start()
    voice = BeamSearch(ask, memory, decoder.vocabulary)
    voice.hear(decoder.prompt(memory, ask.prompt))
    while not voice.done:
        voice.hear(decoder.step(voice.memories(), voice.tokens()))
    return list(voice.lines())


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("early", [True, False])
def test_beam_search_finds_what_transformers_finds(penalty: float, early: bool, tmp_path: Path) -> None:
    model = tiny_checkpoints.make("llama", tmp_path, initializer_range=0.08)
    decoder = load(tmp_path)
    for first in range(3, 9):
        prompt = [first, 17, 5, 3]
        how = {"num_beams": 4, "length_penalty": penalty, "early_stopping": early, "eos_token_id": 60}
        wanted = tiny_checkpoints.says(model, prompt, 12, num_return_sequences=1, **how)
        ask = Ask(np.array(prompt), 12, end_id=60, beams=Beams(4, penalty, early))
        best = search(decoder, ask)[0].tokens
        assert best == (wanted[: wanted.index(60)] if 60 in wanted else wanted)


def test_a_sample_ends_at_and_without_the_end_token(checkpoint: Path) -> None:
    voice = Sample(Ask(np.array([3]), 9, end_id=END), load(checkpoint).start(), 0, 4)
    voice.hear(np.array([[0.0, 0.0, 5.0, 0.0]], np.float32))
    voice.hear(np.array([[0.0, 9.0, 5.0, 0.0]], np.float32))
    assert voice.done
    assert voice.lines()[0].tokens == [2]


def test_a_sample_ends_at_a_stop_word_and_keeps_it(checkpoint: Path) -> None:
    voice = Sample(Ask(np.array([3]), 9, stop_words=((2, 0),)), load(checkpoint).start(), 0, 4)
    voice.hear(np.array([[0.0, 0.0, 5.0, 0.0]], np.float32))
    early = voice.done
    voice.hear(np.array([[9.0, 0.0, 5.0, 0.0]], np.float32))
    assert (early, voice.done) == (False, True)
    assert voice.lines()[0].tokens == [2, 0]


def test_logits_that_are_nan_are_an_error_no_token(checkpoint: Path) -> None:
    voice = Sample(Ask(np.array([3]), 9), load(checkpoint).start(), 0, 4)
    with pytest.raises(FloatingPointError, match="not finite"):
        voice.hear(np.array([[0.0, np.nan, 1.0, 2.0]], np.float32))
