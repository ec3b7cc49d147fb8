"""A recipe, a real Triton, a real model: what a person and their clients see."""

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from forge.api.forge import Forge
from forge.api.outcome import Built
from forge.client.types import Request
from forge.errors import InferenceError, ServerError
from forge.schema.values import Role
from forge.serve.lookup import Target
from live_kit import Say, chat
from patience import PATIENCE, free_ports
from shipped import SMOLLM2

pytestmark = pytest.mark.slow

EMOJI = "Emoji list: 🙂 🎉 🚀 🌍 🎵 😀 🙂 🎉 🚀 🌍 🎵 😀 🙂 🎉"
"""Each of these is several tokens of SmolLM2's, none of them a whole character; greedily it goes on with more."""
QUESTIONS = ("Why is the sky blue?", "What is the capital of France?", "Name three fruits.", "What is two plus two?")


@pytest.fixture(scope="module")
def asked(shop: Forge, served: Target) -> Request:
    """A greedy question in the chat template."""
    return replace(served.request(chat(shop, served, QUESTIONS[1])), temperature=None, top_k=1, top_p=None, max_tokens=24)


def test_the_answer_makes_sense(say: Say, asked: Request) -> None:
    assert "Paris" in say(asked)


def test_the_answer_arrives_in_pieces_and_the_last_is_marked(shop: Forge, served: Target, asked: Request) -> None:
    chunks = list(shop.generate(served.address, asked))
    assert len([chunk for chunk in chunks if chunk.text]) > 3
    assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_a_stream_and_a_whole_answer_say_the_same(say: Say, asked: Request) -> None:
    assert say(asked) == say(replace(asked, stream=False))


def test_the_ensemble_says_what_bls_says(say: Say, asked: Request, served: Target) -> None:
    ensemble = replace(asked, model=served.model.roles[Role.ENSEMBLE])
    assert say(ensemble).strip() == say(asked).strip()


def test_greedy_text_is_transformers_text(say: Say, asked: Request, smollm2_checkpoint: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_checkpoint)
    ids = tokenizer(asked.prompt, return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(**ids, max_new_tokens=asked.max_tokens, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert say(asked) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_one_seed_gives_one_text_alone_and_among_others(say: Say, asked: Request) -> None:
    warm = replace(asked, top_k=0, top_p=0.95, temperature=1.0, seed=7)
    alone = say(warm)
    with ThreadPoolExecutor(6) as crowd:
        others = [crowd.submit(say, replace(warm, seed=seed)) for seed in range(100, 105)]
        among = crowd.submit(say, warm).result()
    assert among == alone
    assert len({alone, *(other.result() for other in others)}) > 1


def test_streams_at_once_are_not_mixed(shop: Forge, served: Target, say: Say, asked: Request) -> None:
    requests = [replace(asked, prompt=chat(shop, served, question)) for question in QUESTIONS]
    alone = [say(request) for request in requests]
    with ThreadPoolExecutor(len(requests)) as crowd:
        assert list(crowd.map(say, requests)) == alone


def test_streams_at_once_are_decoded_together(shop: Forge, served: Target, asked: Request) -> None:
    """No stream waits for another one's end: all have begun while none of them, of minutes, has ended."""
    long = replace(asked, prompt="Once upon a time", max_tokens=shop.read(SMOLLM2).build.max_seq_len - 16, min_tokens=1500)
    begun: set[int] = set()

    def listen(number: int) -> bool:
        stream = shop.generate(served.address, long)
        for chunk in stream:
            begun.add(number)
            if len(begun) == 4 or chunk.final:
                break
        stream.close()  # type: ignore[attr-defined]
        return len(begun) == 4

    with ThreadPoolExecutor(4) as crowd:
        assert all(crowd.map(listen, range(4)))


def test_a_stream_that_is_left_frees_its_place(shop: Forge, served: Target, say: Say, asked: Request) -> None:
    """Every place is taken by a stream that would talk for minutes, and left: the next answer finds a place at once."""
    recipe = shop.read(SMOLLM2)
    endless = replace(asked, prompt="Once upon a time", max_tokens=recipe.build.max_seq_len - 16, min_tokens=1500)
    for _ in range(recipe.build.max_batch_size + 1):
        stream = shop.generate(served.address, endless)
        assert len(list(islice(stream, 2))) == 2
        stream.close()  # type: ignore[attr-defined]
    with ThreadPoolExecutor(1) as crowd:
        assert "Paris" in crowd.submit(say, asked).result(PATIENCE)


@pytest.mark.parametrize("role", [Role.BLS, Role.ENSEMBLE])
def test_no_broken_characters_at_the_edges_of_chunks(shop: Forge, served: Target, asked: Request, role: Role) -> None:
    wide = replace(asked, model=served.model.roles[role], prompt=EMOJI, max_tokens=24)
    chunks = [chunk.text for chunk in shop.generate(served.address, wide)]
    assert sum(ord(letter) > 0xFFFF for text in chunks for letter in text) > 3
    assert not any("\ufffd" in text for text in chunks)


def test_a_stop_word_ends_the_answer(say: Say, asked: Request) -> None:
    assert "Paris" not in say(replace(asked, stop=(" Paris",))).replace(" Paris", "", 1)
    assert len(say(replace(asked, stop=(" of",)))) < len(say(asked))


def test_a_bad_word_is_not_said(say: Say, asked: Request) -> None:
    assert "Paris" not in say(replace(asked, bad=(" Paris",)))


def test_beams_answer_side_by_side(shop: Forge, served: Target, asked: Request) -> None:
    widest = shop.read(SMOLLM2).build.max_beam_width
    if widest < 2:
        pytest.skip("the demo's recipe allows no beams")
    chunks = list(shop.generate(served.address, replace(asked, beam_width=2, stream=False)))
    assert {chunk.index for chunk in chunks} == {0, 1}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": "nobody"}, "nobody"),
        ({"max_tokens": 10**6}, "max_seq_len|max_tokens|too long|exceeds"),
        ({"prompt": ""}, "empty|prompt"),
        ({"temperature": -1.0}, "temperature"),
        ({"beam_width": 99}, "beam"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(
    shop: Forge, served: Target, asked: Request, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InferenceError, match=complaint):
        list(shop.generate(served.address, replace(asked, **change)))


def test_a_refusal_harms_nobody_else(shop: Forge, served: Target, say: Say, asked: Request) -> None:
    with ThreadPoolExecutor(2) as crowd:
        good = crowd.submit(say, asked)
        with pytest.raises(InferenceError):
            say(replace(asked, beam_width=99))
        assert "Paris" in good.result()


def test_a_second_build_makes_nothing(shop: Forge, smollm2: Built) -> None:
    assert all(step.held for step in shop.outlook(shop.plan([SMOLLM2])))


def test_weights_share_their_blocks_with_the_store(smollm2: Built, home: Path) -> None:
    weights = smollm2.repository / "_assets" / "smollm2-135m-instruct" / "engines" / "model.safetensors"
    assert weights.stat().st_nlink > 1
    assert smollm2.copied == 0
    assert np.count_nonzero([weights.samefile(held) for held in home.rglob("model.safetensors")]) >= 1


def test_a_taken_port_is_found_before_the_start(shop: Forge, smollm2: Built, served: Target, tmp_path: Path) -> None:
    other = shop.build([SMOLLM2], repository=tmp_path / "other").repository
    port = int(served.address.rsplit(":", 1)[1])
    taken = replace(free_ports(), grpc=port)
    with pytest.raises(ServerError, match=str(port)):
        shop.serve(other, taken)
