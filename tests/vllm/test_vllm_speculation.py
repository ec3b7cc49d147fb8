"""A variant on the runtime vllm, on fakes: what becomes of it in model.json, and where the second checkpoint stands."""

import json
from pathlib import Path

import pytest

from fake_wiring import World
from fakes import tiny_checkpoint
from forge.api.forge import Forge
from forge.errors import RecipeError
from vllm_recipe import stated, write

DRAFT = "[draft]\nhub = 'acme/small'\n"
PLACE = "../_assets/tiny/draft"


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    world.origin.adapters["acme/small"] = tiny_checkpoint()
    return world.shop(tmp_path / "home")


@pytest.mark.parametrize(
    ("top", "more", "lowered"),
    [
        ("variant = 'ngram'", "", {"method": "ngram", "num_speculative_tokens": 4}),
        (
            "variant = 'ngram'",
            "[speculation]\nmax_draft_len = 5\nngram_size = 3",
            {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3},
        ),
        ("variant = 'draft-target'", DRAFT, {"method": "draft_model", "model": PLACE, "num_speculative_tokens": 10}),
        (
            "variant = 'eagle'",
            f"{DRAFT}[speculation]\nmax_draft_len = 3",
            {"method": "eagle", "model": PLACE, "num_speculative_tokens": 3},
        ),
        (
            "variant = 'medusa'",
            f"{DRAFT}[speculation]\nnum_medusa_heads = 5",
            {"method": "medusa", "model": PLACE, "num_speculative_tokens": 5},
        ),
    ],
)
def test_a_variant_is_vllms_speculative_config(
    shop: Forge, tmp_path: Path, top: str, more: str, lowered: dict[str, object]
) -> None:
    root = shop.build([write(tmp_path / "recipes", more, top=top)], repository=tmp_path / "models").repository
    assert stated(root)["speculative_config"] == lowered
    assert (root / "_assets/tiny/draft/config.json").is_file() is ("model" in lowered)
    assert shop.check(root).findings == ()


def test_a_third_eagle_is_told_by_its_config(shop: Forge, world: World, tmp_path: Path) -> None:
    """vLLM goes by the name of the folder, which is the same for every recipe."""
    world.origin.adapters["acme/small"] = tiny_checkpoint({"architectures": ["LlamaForCausalLMEagle3"], "vocab_size": 32})
    root = shop.build([write(tmp_path / "recipes", DRAFT, top="variant = 'eagle'")], repository=tmp_path / "models").repository
    said = stated(root)["speculative_config"]
    assert isinstance(said, dict)
    assert said["method"] == "eagle3"


def test_a_draft_of_another_vocabulary_is_refused(shop: Forge, world: World, tmp_path: Path) -> None:
    config = json.loads(tiny_checkpoint()["config.json"])
    world.origin.adapters["acme/small"] = tiny_checkpoint({**config, "vocab_size": 33})
    with pytest.raises(RecipeError, match=r"33 tokens, and that of \[source\] 32"):
        shop.plan([write(tmp_path / "recipes", DRAFT, top="variant = 'draft-target'")])


def test_ngram_is_vllms_alone(shop: Forge, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipes", top="variant = 'ngram'\nfamily = 'llama'")
    recipe.write_text(recipe.read_text().replace('"vllm"', '"engine"'))
    with pytest.raises(RecipeError, match="ngram is vLLM's"):
        shop.plan([recipe])
