"""What the twin computes through transformers is what transformers' own `generate` says: the same cache, the same switches."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_checkpoints
from forge.twin.asks import Ask, Beams, Limits, read_asks
from forge.twin.decoder import CHUNK, Decoder
from forge.twin.faults import CheckpointFault, RequestFault
from forge.twin.loading import load
from forge.twin.others import TransformersDecoder
from tiny_checkpoints import phi3, t5, torch, transformers
from twin_loop import Heard, run

LIMIT = 160
"""Of the tiny Phi-3's short factors: more than a piece of the loop's."""
PROMPT = [int(token) for token in np.random.default_rng(0).integers(2, tiny_checkpoints.VOCABULARY, 250)]
END = 1


def served(decoder: Decoder, prompt: Sequence[int], count: int, **how: Any) -> list[int]:
    """What a served twin says after a prompt: through the loop, which decides how a prompt is cut."""
    exchange = Heard((Ask(np.array(prompt), count, decoder.begins, end_id=END, **how),))
    run(decoder, exchange)
    assert not exchange.outcome
    return exchange.tokens[0]


def generated(model: Any, prompt: Sequence[int], count: int, **how: Any) -> list[int]:
    """What ``generate`` says there, up to its end."""
    ids = torch.tensor([list(prompt)])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, **how)[0].tolist()
    said: list[int] = out[1:] if model.config.is_encoder_decoder else out[len(prompt) :]
    return said[: said.index(END)] if END in said else said


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Any]:
    folder = tmp_path_factory.mktemp("phi3")
    model = phi3(folder, LIMIT)
    return load(folder), model


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(20, id="within the short factors"),
        pytest.param(LIMIT - 12, id="the answer crosses"),
        pytest.param(LIMIT - 1, id="the first token crosses"),
        pytest.param(LIMIT, id="the prompt ends where the short factors do"),
        pytest.param(LIMIT + 1, id="the prompt crosses by one"),
        pytest.param(len(PROMPT), id="the prompt is beyond"),
    ],
)
def test_a_phi3_equals_generate_around_its_short_factors(longrope: tuple[Decoder, Any], length: int) -> None:
    decoder, model = longrope
    assert CHUNK < LIMIT, "the loop would cut the prompt before the limit"
    assert served(decoder, PROMPT[:length], 24) == generated(model, PROMPT[:length], 24)


def test_beams_of_a_phi3_cross_its_limit_as_generates_do(longrope: tuple[Decoder, Any]) -> None:
    decoder, model = longrope
    prompt = PROMPT[: LIMIT - 6]
    wanted = generated(model, prompt, 12, num_beams=3, early_stopping=True, length_penalty=0.0)
    assert served(decoder, prompt, 12, beams=Beams(3)) == wanted


def test_an_unknown_decoder_runs_through_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=199, n_embd=32, n_layer=2, n_head=2, n_positions=300, eos_token_id=END)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    decoder = load(tmp_path)
    assert type(decoder) is TransformersDecoder
    assert (decoder.vocabulary, decoder.positions, decoder.begins) == (199, 300, None)
    assert served(decoder, PROMPT[:140], 10) == generated(model, PROMPT[:140], 10)


def test_a_checkpoints_own_habits_are_not_taken_for_greedy(tmp_path: Path) -> None:
    """generation_config.json may state a penalty, which changes greedy answers; a served model is asked for one by itself."""
    model = phi3(tmp_path, LIMIT)
    plain = generated(model, PROMPT[:20], 16)
    model.generation_config.repetition_penalty = 5.0
    model.save_pretrained(tmp_path)
    assert generated(model, PROMPT[:20], 16) != plain
    assert served(load(tmp_path), PROMPT[:20], 16) == plain


def test_logits_of_a_whole_prompt_are_the_models(longrope: tuple[Decoder, Any]) -> None:
    decoder, model = longrope
    with torch.no_grad():
        wanted = model(torch.tensor([PROMPT])).logits[0].numpy()
    found = decoder.prompt(decoder.start(), np.array(PROMPT), every=True)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize(
    "settings", [{}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}], ids=["t5", "v1.1"]
)
def test_an_encoder_and_a_decoder_say_what_generate_says(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = t5(tmp_path, **settings)
    decoder = load(tmp_path)
    assert (decoder.begins, decoder.vocabulary) == (0, 199)
    for length in (3, 140):
        assert served(decoder, PROMPT[:length], 16) == generated(model, PROMPT[:length], 16)
    wanted = generated(model, PROMPT[:9], 8, num_beams=3, early_stopping=True, length_penalty=0.0)
    assert served(decoder, PROMPT[:9], 8, beams=Beams(3)) == wanted


def test_a_forked_encoder_decoder_goes_its_own_way(tmp_path: Path) -> None:
    t5(tmp_path)
    decoder = load(tmp_path)
    memory = decoder.start()
    decoder.prompt(memory, np.array(PROMPT[:9]))
    fork = memory.fork()
    decoder.step([memory], [3])
    after = decoder.step([memory], [4])
    decoder.step([fork], [3])
    np.testing.assert_array_equal(decoder.step([fork], [4]), after)


def test_an_encoder_leaves_the_decoders_room_to_the_answer() -> None:
    limits = Limits(vocabulary=199, max_input_len=60, max_seq_len=20, begins=0)
    tensors = {"input_ids": np.full((1, 50), 7), "request_output_len": np.array([[19]])}
    (ask,) = read_asks(tensors, limits)
    assert (ask.before.tolist(), len(ask.prompt)) == ([0], 50)
    read_asks({**tensors, "decoder_input_ids": np.array([[0]])}, limits)
    for wrong in ({"request_output_len": np.array([[20]])}, {"decoder_input_ids": np.array([[5, 6]])}):
        with pytest.raises(RequestFault, match=r"begins an answer|model's own token 0"):
            read_asks({**tensors, **wrong}, limits)


def test_a_model_without_an_encoder_ignores_a_decoders_beginning() -> None:
    tensors = {"input_ids": np.full((1, 5), 7), "request_output_len": np.array([[3]]), "decoder_input_ids": np.array([[2]])}
    (ask,) = read_asks(tensors, Limits(vocabulary=199, max_input_len=60, max_seq_len=20))
    assert ask.prompt.tolist() == [7] * 5


def test_what_transformers_cannot_run_either_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["NobodyKnows"], "model_type": "nobody"}))
    with pytest.raises(CheckpointFault, match="architecture NobodyKnows"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
        ("Falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}),
        (
            "OPT",
            {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        ),
    ],
)
def test_a_model_of_no_family_says_what_transformers_says(kind: str, shape: dict[str, int], tmp_path: Path) -> None:
    """No plugin serves these: the twin asks transformers, and wants none."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **shape, vocab_size=tiny_checkpoints.VOCABULARY, bos_token_id=0, eos_token_id=END, pad_token_id=END
    )
    named = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    model = getattr(transformers, named)(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    assert served(load(tmp_path), PROMPT[:20], 12) == generated(model, PROMPT[:20], 12)
