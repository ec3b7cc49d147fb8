"""Where nothing is converted no family is needed: GPT-2 goes by vLLM, llmapi and the twin, and a plan says so."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from fake_wiring import World
from fakes import LLAMA
from forge.errors import RecipeError
from forge.plan.families import WITHOUT_FAMILY
from forge.plan.steps import MakeImage, Plan

GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 2048,
}


def _recipe(world: World, tmp_path: Path, more: str, config: Mapping[str, object]) -> Path:
    world.origin.files["config.json"] = json.dumps(config).encode()
    file = tmp_path / "m.toml"
    file.write_text(f'name = "m"\n{more}\n[source]\nhub = "owner/m"\n')
    return file


def _plan(world: World, tmp_path: Path, more: str, config: Mapping[str, object] = GPT2) -> Plan:
    return world.shop(tmp_path / "home").plan([_recipe(world, tmp_path, more, config)])


TWIN = 'runtime = { kind = "twin", packages = ["transformers", "torch"] }'
LLMAPI = 'runtime = { kind = "llmapi" }'


def test_the_twin_builds_a_model_of_no_family_by_transformers(world: World, tmp_path: Path) -> None:
    recipe = _recipe(world, tmp_path, TWIN, GPT2)
    built = world.shop(tmp_path / "home").build([recipe], repository=tmp_path / "repository")
    assert [model.name for model in built.models] == ["m"]
    with pytest.raises(RecipeError, match="the twin's own decoder does not read GPT2LMHeadModel") as refused:
        _plan(world, tmp_path, 'runtime = { kind = "twin" }')
    assert "transformers" in str(refused.value)


def test_weights_of_a_model_that_transformers_serves_are_not_rounded(world: World, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"runtime\.weights"):
        _plan(world, tmp_path, TWIN.replace(" }", ', weights = "int8" }'))


def test_llmapi_builds_a_model_of_no_family_in_the_image(world: World, tmp_path: Path) -> None:
    recipe = _recipe(world, tmp_path, LLMAPI, GPT2)
    shop = world.shop(tmp_path / "home")
    assert [model.name for model in shop.build([recipe], repository=tmp_path / "repository").models] == ["m"]
    plan = shop.plan([recipe])
    (image,) = [step.action for step in plan.steps if isinstance(step.action, MakeImage)]
    assert (image.family, image.requirements.pip) == ("", ())
    assert world.containers.built == []


@pytest.mark.parametrize("more", [TWIN, LLMAPI, 'runtime = { kind = "vllm", gpus = "none" }'])
def test_a_plan_says_which_runtimes_need_no_family(world: World, tmp_path: Path, more: str) -> None:
    said = f"m: no installed family serves GPT2LMHeadModel: {WITHOUT_FAMILY}"
    assert all(kind in said for kind in ("vllm", "llmapi", "twin"))
    assert said in _plan(world, tmp_path, more).notes
    claimed = _plan(world, tmp_path, more, dict(LLAMA))
    assert not any("family" in note for note in claimed.notes)


def test_its_repository_of_vllm_is_built(world: World, tmp_path: Path) -> None:
    recipe = _recipe(world, tmp_path, 'runtime = { kind = "vllm", gpus = "none" }', GPT2)
    shop = world.shop(tmp_path / "home")
    assert [model.name for model in shop.build([recipe], repository=tmp_path / "repository").models] == ["m"]


def test_what_every_family_checks_is_checked_without_one(world: World, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"m.toml: convert\.tp"):
        _plan(world, tmp_path, f"{LLMAPI}\nconvert = {{ tp = 3 }}", {**LLAMA, "architectures": ["OtherForCausalLM"]})


def test_an_engine_needs_one_and_what_is_named_counts(world: World, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no installed family serves GPT2LMHeadModel") as refused:
        _plan(world, tmp_path, 'runtime = { kind = "engine" }')
    assert WITHOUT_FAMILY in str(refused.value)
    with pytest.raises(RecipeError, match="says nothing of its architecture"):
        _plan(world, tmp_path, TWIN, {})
    assert _plan(world, tmp_path, 'runtime = { kind = "llmapi" }\nfamily = "llama"', dict(LLAMA)).entries
