"""A lock holds packages to sha256: forge's own pins, what only an index knows, and what the recipe's packages bring."""

import json
from pathlib import Path

import pytest

from fake_wiring import World
from forge.api.forge import Forge
from forge.errors import LockError
from forge.plan.steps import MakeEnvironment, Step
from forge.schema.values import BuildOptions
from forge.schema.wheels import read_report, shipped
from vllm_recipe import write

ONE, TWO = "1" * 64, "2" * 64


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


def twin(tmp_path: Path, packages: str = "") -> Path:
    recipe = write(tmp_path / "recipes", runtime=packages)
    recipe.write_text(recipe.read_text().replace('"vllm"', '"twin"'))
    return recipe


def environment(shop: Forge, recipe: Path, *, locked: bool = True) -> tuple[Step, MakeEnvironment]:
    (step,) = [step for step in shop.plan([recipe], BuildOptions(locked=locked)).steps if step.name == "environment"]
    assert isinstance(step.action, MakeEnvironment)
    return step, step.action


def notes(shop: Forge, recipe: Path) -> list[str]:
    return [note for note in shop.plan([recipe]).notes if "held to no hash" in note]


def test_a_lock_holds_forges_pins_and_moves_no_key(shop: Forge, tmp_path: Path) -> None:
    recipe = twin(tmp_path)
    before, _ = environment(shop, recipe, locked=False)
    file, _ = shop.lock(recipe)
    after, made = environment(shop, recipe)
    assert made.hashes == {pin: shipped()[pin] for pin in made.environment.bare}
    assert json.loads(file.read_text())["hashes"] == {pin: [*digests] for pin, digests in made.hashes.items()}
    assert after.key == before.key
    assert notes(shop, recipe) == []
    assert not shop.lock(recipe)[1]


def test_packages_of_a_recipe_are_locked_with_what_they_bring(shop: Forge, world: World, tmp_path: Path) -> None:
    recipe = twin(tmp_path, 'packages = ["outer>=1"]')
    assert "held to no hash: outer>=1; `forge lock`" in notes(shop, recipe)[0]
    world.environments.index = {"outer==1.0": (ONE,), "inner==2.0": (TWO,), "jinja2==3.1.6": (ONE,)}
    shop.lock(recipe)
    _, made = environment(shop, recipe)
    assert made.environment.packages == ()
    assert made.environment.bare[-2:] == ("inner==2.0", "outer==1.0")
    assert (made.hashes["outer==1.0"], made.hashes["inner==2.0"]) == ((ONE,), (TWO,))
    assert made.hashes["jinja2==3.1.6"] == shipped()["jinja2==3.1.6"]
    assert notes(shop, recipe) == []
    world.environments.index = {}
    assert not shop.lock(recipe)[1]


def test_a_lock_for_another_python_says_what_it_lacks(shop: Forge, world: World, tmp_path: Path) -> None:
    recipe = twin(tmp_path, 'packages = ["outer>=1"]')
    world.environments.index = {"outer==1.0": (ONE,)}
    file, _ = shop.lock(recipe)
    said = json.loads(file.read_text())
    said["brought"]["python"] = "3.12"
    file.write_text(json.dumps(said))
    assert environment(shop, recipe)[1].environment.packages == ("outer>=1",)
    assert "outer>=1" in notes(shop, recipe)[0]


def test_an_older_lock_without_hashes_still_serves(shop: Forge, world: World, tmp_path: Path) -> None:
    recipe = twin(tmp_path, 'packages = ["outer>=1"]')
    file, _ = shop.lock(recipe)  # the index said nothing
    assert any("held to no hash: outer>=1: the package index" in event.text for event in world.events)
    said = json.loads(file.read_text())
    assert "brought" not in said
    del said["hashes"]
    said["versions"]["nvidia-pytriton"] = "0.6.0"
    file.write_text(json.dumps(said))
    step, made = environment(shop, recipe)
    assert made.hashes == {}
    assert step.key
    assert "outer>=1, nvidia-pytriton==0.6.0" in notes(shop, recipe)[0]


def test_hashes_that_a_person_added_stay_in_the_lock(shop: Forge, tmp_path: Path) -> None:
    recipe = twin(tmp_path)
    file, _ = shop.lock(recipe)
    said = json.loads(file.read_text())
    said["hashes"]["jinja2==3.1.6"].append(ONE)
    said["hashes"]["Jinja2==3.1.6"] = [TWO]
    file.write_text(json.dumps(said))
    for _ in range(2):
        found = environment(shop, recipe)[1].hashes["jinja2==3.1.6"]
        assert set(found) == {*shipped()["jinja2==3.1.6"], ONE, TWO}
        shop.lock(recipe)


@pytest.mark.parametrize("wrong", [{"jinja2": [ONE]}, {"jinja2==3.1.6": ["--index-url"]}, {"-r x==1": [ONE]}])
def test_hashes_that_are_none_are_not_read(shop: Forge, tmp_path: Path, wrong: dict[str, list[str]]) -> None:
    recipe = twin(tmp_path)
    file, _ = shop.lock(recipe)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hashes": wrong}))
    with pytest.raises(LockError, match="not readable"):
        shop.plan([recipe])


@pytest.mark.parametrize(
    "stated", [{"hashes": {"sha256": "ab"}}, {"hash": "sha256=ab"}, {"hash": "sha256=ab", "hashes": {"sha256": "ab"}}]
)
def test_digests_are_read_as_pip_of_any_age_states_them(stated: dict[str, object]) -> None:
    """pip before 23.0 states ``hash`` alone."""
    chosen = {"metadata": {"name": "tiny", "version": "1.0"}, "download_info": {"archive_info": stated}}
    assert read_report(json.dumps({"install": [chosen]})) == {"tiny==1.0": ("ab",)}
