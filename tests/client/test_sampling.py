"""What travels for what a person says of sampling: `--temperature` alone draws, at every door, and 0 takes the likeliest."""

import pytest
from msgspec.structs import replace

from forge.client.sampling import meant, over, samples, seeded
from forge.client.tensors import drawing, inputs_of
from forge.client.types import ModelMetadata, Request, TensorMetadata

PLAIN = Request("m", "hello", 5)


def model(*names: str) -> ModelMetadata:
    types = {"text_input": "BYTES", "max_tokens": "INT32", **dict.fromkeys(names, "FP32"), "seed": "UINT64"}
    return ModelMetadata("m", {name: TensorMetadata(name, kind, (-1, 1)) for name, kind in types.items()}, {})


@pytest.mark.parametrize(
    ("said", "travels"),
    [
        ({}, (None, None)),
        ({"temperature": 0.7}, (0, 1.0)),
        ({"seed": 7}, (0, 1.0)),
        ({"n": 2}, (0, 1.0)),
        ({"n": 1}, (None, None)),
        ({"top_k": 40}, (40, None)),  # the server's own top_p is 1, and samplers that look at top_p first would not see top_k
        ({"top_k": 0}, (0, 1.0)),
        ({"top_p": 0.9}, (0, 0.9)),
        ({"top_k": 40, "top_p": 0.9, "temperature": 0.7}, (40, 0.9)),
        ({"temperature": 0.0}, (1, None)),
        ({"temperature": 0.0, "top_k": 40, "top_p": 0.9, "seed": 7, "n": 2}, (1, None)),
        ({"top_k": 1, "top_p": 0.9, "temperature": 0.7}, (1, None)),
        ({"top_p": 0.0, "temperature": 0.7}, (1, None)),
        ({"beam_width": 4, "temperature": 0.7, "n": 2}, (None, None)),
    ],
)
def test_top_k_and_top_p_travel_as_they_are_meant(said: dict[str, float], travels: tuple[int | None, float | None]) -> None:
    asked = replace(PLAIN, **said)
    told = meant(asked)
    assert (told.top_k, told.top_p) == travels
    assert samples(asked) is (travels not in ((None, None), (1, None)))
    assert meant(told) == told
    assert (told.temperature, told.seed, told.n) == (asked.temperature, asked.seed, asked.n)


def test_a_seed_is_drawn_only_for_unseeded_draws() -> None:
    assert seeded(PLAIN).seed is None
    assert seeded(replace(PLAIN, temperature=0.0)).seed is None
    warm = replace(PLAIN, temperature=0.5)
    assert seeded(warm).seed != seeded(warm).seed
    assert seeded(replace(warm, seed=3)).seed == 3
    assert seeded(replace(warm, seed=3), 4).seed == 4
    assert seeded(PLAIN, 4).seed is None


@pytest.mark.parametrize(
    ("usual", "said", "draws"),
    [
        ({"top_k": 1}, {"temperature": 0.7}, True),
        ({"top_k": 1}, {"temperature": 0.7, "top_k": 1}, False),
        ({"top_k": 1}, {"seed": 7}, False),
        ({"temperature": 0.0}, {"top_k": 40}, True),
        ({"temperature": 0.0}, {"top_p": 0.9}, True),
        ({"temperature": 0.0}, {"top_p": 1.0}, False),  # OpenAI's default, which its clients send unasked
        ({"temperature": 0.0}, {"top_k": 40, "temperature": 0.0}, False),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.0}, False),
        ({"temperature": 0.7}, {"temperature": None, "top_k": None}, True),
    ],
)
def test_a_caller_who_draws_overrides_a_recipes_likeliest_token(
    usual: dict[str, float], said: dict[str, object], draws: bool
) -> None:
    assert samples(over(replace(PLAIN, **usual), said)) is draws


def test_forges_additions_are_not_asked_without_an_input() -> None:
    warm = replace(PLAIN, temperature=0.5)
    names = [each.name for each in inputs_of(warm, model("temperature"))]
    assert "temperature" in names
    assert not {"top_k", "top_p"} & set(names)
    assert [each.name for each in inputs_of(warm, model("temperature", "top_p"))][-1:] == ["top_p"]


def test_a_model_without_a_seed_is_sent_none_unasked() -> None:
    warm = replace(PLAIN, temperature=0.5)
    assert drawing(warm, model("temperature")).seed is not None
    seedless = ModelMetadata("m", {}, {})
    assert drawing(warm, seedless).seed is None
    assert drawing(replace(warm, seed=5), seedless).seed == 5
