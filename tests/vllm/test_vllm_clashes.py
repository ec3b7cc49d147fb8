"""Arguments of vLLM that clash: found in what is stated, and said by a plan before anything is fetched."""

from pathlib import Path

import pytest

from fake_wiring import World
from forge.api.forge import Forge
from forge.errors import RecipeError
from forge.schema.vllm_clashes import USUAL_TOKENS, clashes
from vllm_models import CLASHES
from vllm_recipe import write

CONFIG = {"num_attention_heads": 9}


def found(stated: dict[str, object]) -> list[str]:
    return [each.rule for each in clashes({"max_model_len": 128, **stated}, CONFIG, usual_tokens=USUAL_TOKENS)]


@pytest.mark.parametrize(("rule", "refused", "taken"), CLASHES)
def test_what_clashes_is_found_its_neighbours_are_not(rule: str, refused: dict[str, object], taken: dict[str, object]) -> None:
    assert found(refused) == [rule]
    assert found(taken) == []


def test_a_draft_may_state_how_many_it_guesses() -> None:
    """As vLLM reads n_predict of its config.json (config/speculative.py)."""
    assert found({"speculative_config": {"method": "draft_model", "model": "draft"}}) == []
    assert found({"speculative_config": {"method": "ngram"}}) == ["vllm-speculation"]


def test_arguments_of_no_sensible_kind_clash_with_nothing() -> None:
    odd: dict[str, object] = dict.fromkeys(
        ("max_num_batched_tokens", "max_num_seqs", "speculative_config", "tensor_parallel_size", "gpu_memory_utilization"), "x"
    )
    assert found(odd) == []


def test_ranks_sharing_a_prompt_may_share_the_cache() -> None:
    """And another config has other heads."""
    assert found({"prefill_context_parallel_size": 2, "decode_context_parallel_size": 2}) == []
    assert found({"tensor_parallel_size": 2, "hf_config_path": "elsewhere"}) == []


def test_an_older_vllm_is_told_what_every_one_refuses() -> None:
    stated = {"enable_chunked_prefill": False, "max_num_batched_tokens": 8, "max_num_seqs": 16, "max_model_len": 128}
    assert [each.what for each in clashes(stated, {}, "0.9.2")] == [
        "is 8, below max_num_seqs (16): each takes one in a pass",
    ]
    assert len(list(clashes(stated, {}, "0.20.0"))) == 2


@pytest.mark.parametrize(
    ("more", "changed", "said"),
    [
        (
            "[serve.vllm]\nmax_num_batched_tokens = 3",
            "",
            "is 3, below max_num_seqs (4): each takes one in a pass\n    vLLM refuses it; max_num_seqs is build.max_batch_size",
        ),
        (
            "",
            "max_batch_size = 4096",
            "serve.vllm.max_num_batched_tokens: is 2048 where nobody says it, below max_num_seqs (4096)",
        ),
        ("[convert]\ntp = 3", "", "convert.tp: tensor_parallel_size is 3, and the 4 attention heads of the checkpoint cannot"),
        (
            "[serve.vllm]\ngpu_memory_utilization = 1.5",
            "",
            "serve.vllm.gpu_memory_utilization: is 1.5: it is a part of the card",
        ),
    ],
)
def test_a_plan_says_it_before_anything_is_fetched(world: World, tmp_path: Path, more: str, changed: str, said: str) -> None:
    shop: Forge = world.shop(tmp_path / "home")
    recipe = write(tmp_path / "recipes", more)
    if changed:
        recipe.write_text(recipe.read_text().replace("max_batch_size = 4", changed))
    with pytest.raises(RecipeError) as caught:
        shop.plan([recipe])
    assert said in str(caught.value)
    assert world.origin.fetches == 0
