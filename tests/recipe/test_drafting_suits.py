"""`forge new` writes what a plan accepts: for every architecture that a family serves, and for those that none does."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from fake_wiring import World
from fakes import LLAMA, tiny_checkpoint
from forge.plan import families
from forge.recipe.new import draft
from forge.recipe.reader import read
from forge.schema.config_json import LENGTHS, longest
from forge.schema.values import Checkpoint, Recipe, RuntimeKind, Source

T5: Mapping[str, object] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
    "n_positions": 512,
    "d_model": 16,
    "d_ff": 32,
    "d_kv": 4,
    "num_heads": 4,
    "num_layers": 2,
    "vocab_size": 32,
}
GPT2: Mapping[str, object] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_positions": 1024,
    "n_embd": 16,
    "n_head": 4,
    "n_layer": 2,
    "vocab_size": 32,
}
SERVED = sorted({name for family in families.claimed() for name in families.load(family).architectures or ()})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(world: World, home: Path, config: Mapping[str, object]) -> Recipe:
    """What is written for a checkpoint of this config.json, when a plan has accepted it."""
    world.origin.files = tiny_checkpoint(config)
    shop = world.shop(home)
    Path("drafted.toml").write_text(shop.draft("acme/it"))
    shop.plan(["drafted.toml"])
    return shop.read("drafted.toml")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", SERVED)
def test_every_architecture_of_a_family_gets_a_buildable_recipe(
    world: World, tmp_path: Path, architecture: str, dtype: str
) -> None:
    base = {**T5, "architectures": [architecture]} if "T5" in architecture else {**LLAMA, "architectures": [architecture]}
    assert planned(world, tmp_path / "home", {**base, "torch_dtype": dtype}).runtime.kind is RuntimeKind.ENGINE


def test_a_model_newer_than_the_usual_image_gets_one_fitting(world: World, tmp_path: Path) -> None:
    recipe = planned(world, tmp_path / "home", {**LLAMA, "architectures": ["Qwen3ForCausalLM"]})
    assert recipe.runtime.image == "25.09"
    assert "which knows this model" in Path("drafted.toml").read_text()


def test_a_dtype_unknown_to_a_familys_script_is_not_written(world: World, tmp_path: Path) -> None:
    assert planned(world, tmp_path / "home", {**T5, "torch_dtype": "float32"}).convert.dtype == "bfloat16"


def test_what_no_family_serves_goes_to_vllm_as_stated(world: World, tmp_path: Path) -> None:
    recipe = planned(world, tmp_path / "home", GPT2)
    assert (recipe.runtime.kind, recipe.family, recipe.build.max_seq_len) == (RuntimeKind.VLLM, None, 1024)
    assert "no installed family serves GPT2LMHeadModel; vllm, llmapi and twin need none" in Path("drafted.toml").read_text()


@pytest.mark.parametrize("name", LENGTHS)
def test_each_architectures_own_name_for_its_length_is_read(name: str) -> None:
    text = draft("mine", Source(hub="owner/model"), Checkpoint({"architectures": ["X"], name: 1000}), "llama")
    assert read(text, "mine.toml").build.max_seq_len == 1000
    assert f"the model was trained for 1000 ({name})" in text


def test_of_several_lengths_the_shortest_counts_and_nonsense_does_not() -> None:
    assert longest({"max_position_embeddings": 4096, "seq_length": 2048, "n_ctx": True, "n_positions": "x"}) == (
        "seq_length",
        2048,
    )
    assert longest({"n_positions": 0}) == ("", 0)
