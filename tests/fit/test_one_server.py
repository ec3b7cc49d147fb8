"""What is built together is served by one Triton: what cannot be is refused before anything is fetched, with the way out."""

import json
import re
from pathlib import Path

import pytest

from fake_wiring import World
from fakes import LLAMA
from forge.api.forge import Forge
from forge.errors import RecipeError
from forge.fit import vllm
from forge.fit.gpus import find
from forge.fit.sharing import room
from forge.machine.probe import ThisMachine
from forge.schema.values import Gpu

KINDS = {
    "engine": 'kind = "engine"\nimage = "25.08"',
    "older": 'kind = "engine"\nimage = "25.07"',
    "llmapi": 'kind = "llmapi"\nimage = "25.08"',
    "twin": 'kind = "twin"',
    "vllm": 'kind = "vllm"',
    "contained": 'kind = "vllm"\nexecutor = "docker"\nimage = "25.11"',
}
RECIPE = 'name = "{name}"\n[source]\nhub = "acme/tiny"\n[runtime]\n{runtime}\n[build]\nmax_batch_size = 4\nmax_seq_len = 2048\n'
CARD = "H100 SXM"


@pytest.fixture
def shop(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forge:
    """A machine with one H100."""
    world.gpus = (find(CARD),)

    def seen(_: ThisMachine) -> tuple[Gpu, ...]:
        return world.gpus

    monkeypatch.setattr(ThisMachine, "gpus", seen)
    return world.shop(tmp_path / "home")


def recipes(folder: Path, *kinds: str) -> list[Path]:
    """One recipe of each kind, called as it; a kind that is named twice gets a second name."""
    folder.mkdir(exist_ok=True)
    files: list[Path] = []
    for kind in kinds:
        file = folder / f"{kind}{'' if folder / f'{kind}.toml' not in files else '2'}.toml"
        file.write_text(RECIPE.format(name=file.stem, runtime=KINDS[kind]))
        files.append(file)
    return files


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        (
            ("engine", "vllm"),
            "engine is served by an image of NVIDIA's with TensorRT-LLM; vllm is served by vLLM's environment on this machine",
        ),
        (
            ("engine", "engine", "contained"),
            "engine, engine2 are served by .* with TensorRT-LLM; contained is served by .* with vLLM",
        ),
        (("engine", "twin"), "twin is served by the twin's environment"),
        (("vllm", "contained"), "contained is served by an image of NVIDIA's with vLLM"),
        (("vllm", "twin"), "vllm is served by vLLM's environment on this machine; twin is served by the twin's environment"),
        (
            ("engine", "older"),
            "one server has one image: .*25.08-trtllm-python-py3; older is served by .*25.07-trtllm-py",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "build", "foresee"])
def test_what_no_server_can_hold_is_refused_before_fetching(
    shop: Forge, world: World, tmp_path: Path, kinds: tuple[str, ...], told: str, verb: str
) -> None:
    named = recipes(tmp_path / "r", *kinds)
    world.containers.here = False
    with pytest.raises(RecipeError) as caught:
        getattr(shop, verb)(named)
    (problem,) = caught.value.problems
    assert re.search(told, problem.what), problem.what
    assert "--repository of its own, and serve them on ports of their own" in problem.hint
    assert world.origin.fetches == world.containers.pulled == 0


@pytest.mark.parametrize(
    "kinds", [("engine", "engine"), ("engine", "llmapi"), ("twin", "twin"), ("vllm", "vllm"), ("contained", "contained")]
)
def test_what_one_server_can_hold_is_planned(shop: Forge, tmp_path: Path, kinds: tuple[str, ...]) -> None:
    assert shop.plan(recipes(tmp_path / "r", *kinds)).entries


def test_the_way_out_names_one_image_or_card_parts(shop: Forge, world: World, tmp_path: Path) -> None:
    hints: list[str] = []
    world.containers.here = False
    for kinds in (("engine", "older"), ("engine", "vllm"), ("engine", "twin")):
        with pytest.raises(RecipeError) as caught:
            shop.plan(recipes(tmp_path / "r", *kinds))
        hints += [problem.hint for problem in caught.value.problems]
    images, cards, twin = hints
    assert images.startswith("give them one runtime.image; or ")
    assert "gpu.memory of a deployment) and start the engines' server first" in cards
    assert "gpu.memory" not in images + twin


def test_two_tags_of_one_image_are_one(shop: Forge, world: World, tmp_path: Path) -> None:
    assert world.containers.here, "both are looked at, and have one id"
    assert shop.plan(recipes(tmp_path / "r", "engine", "older")).entries


def test_twins_of_other_packages_are_told_before_they_are_built(shop: Forge, tmp_path: Path) -> None:
    first, second = recipes(tmp_path / "r", "twin", "twin")
    for file, packages in ((first, '["six==1.16.0"]'), (second, '["six==1.17.0"]')):
        text = file.read_text().replace("[runtime]\n", f"[runtime]\npackages = {packages}\n")
        file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        shop.plan([first, second])
    (problem,) = caught.value.problems
    assert "twin asks for six==1.16.0; twin2 asks for six==1.17.0" in problem.what
    assert problem.hint.startswith("give one of them all runtime.packages; or ")
    second.write_text(second.read_text().replace('["six==1.17.0"]', '["six==1.16.0", "wheel==0.45.1"]'))
    assert shop.plan([first, second]).entries, "the second has all that the first needs"


def test_a_deployment_is_named_and_told_to_be_two(shop: Forge, tmp_path: Path) -> None:
    recipes(tmp_path / "r", "engine", "vllm")
    file = tmp_path / "both.toml"
    file.write_text('recipes = ["r/engine.toml", "r/vllm.toml"]\nrepository = "models"\n')
    with pytest.raises(RecipeError) as caught:
        shop.build([file])
    (problem,) = caught.value.problems
    assert problem.where == str(file)
    assert "write a deployment for each, with a repository and ports of its own" in problem.hint


def test_what_needs_no_server_takes_them_together(shop: Forge, world: World, tmp_path: Path) -> None:
    both = recipes(tmp_path / "r", "engine", "vllm")
    assert {fit.name for fit in shop.fit(both, gpu=CARD).fits} == {"engine", "vllm"}
    assert shop.fetch(both)
    assert world.origin.fetches == 1


def test_budgets_keep_an_engine_and_vllm_apart_on_a_card(shop: Forge, world: World, tmp_path: Path) -> None:
    """vLLM's part is of the whole card, TensorRT-LLM's of what is free: an engine that loads first stays in its budget."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = {**LLAMA, **sizes, "num_hidden_layers": 32, "vocab_size": 128256, "max_position_embeddings": 4096}
    world.origin.files["config.json"] = json.dumps(config).encode()
    files = recipes(tmp_path / "r", "engine", "vllm")
    for file in files:  # caches that would fill the card
        file.write_text(file.read_text().replace("max_batch_size = 4", "max_batch_size = 256"))
    for file, part in zip(files, (0.5, 0.4), strict=True):
        text = f'recipes = ["r/{file.name}"]\nrepository = "{file.stem}"\n[gpu]\nmemory = {part}\n'
        (tmp_path / file.name).write_text(text)
    built = [shop.build([tmp_path / file.name]).repository for file in files]
    card = find(CARD)
    text = (built[0] / "tensorrt_llm/config.pbtxt").read_text()
    found = re.search(r'"kv_cache_free_gpu_mem_fraction"\s+value {\s+string_value: "([0-9.]+)"', text)
    assert found
    (fit,) = shop.fit([tmp_path / "engine.toml"]).fits
    fixed = max(fit.weight_ranks) + fit.activation.size
    assert 0.3 * card.memory < fixed + float(found[1]) * (room(card) - fixed) <= 0.5 * card.memory
    part = json.loads((built[1] / "vllm/1/model.json").read_text())["gpu_memory_utilization"]
    assert 0.3 * card.memory < part * vllm.usable(card) <= 0.4 * card.memory
