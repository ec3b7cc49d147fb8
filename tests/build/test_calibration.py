"""Texts to calibrate with, from the recipe to the container: pinned, fetched once, mounted, and asked for by nobody else."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from fake_wiring import World
from forge.api.forge import Forge
from forge.errors import SourceError
from forge.plan.lock import lock, read, stale, write
from forge.schema.values import Calibration, ConvertTable, FileFact, Pinned, Recipe, RuntimeKind, Source, SourceKind

CALIBRATED = """
name = "tiny"
[source]
hub = "acme/tiny"
[runtime]
kind = "engine"
gpus = "none"
[convert]
dtype = "float16"
quantization = "fp8"
[convert.calibration]
hub = "acme/texts"
size = 64
"""


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(CALIBRATED)
    return file


def test_texts_are_fetched_before_and_mounted_where_quantize_is_told(
    shop: Forge, world: World, recipe: Path, tmp_path: Path
) -> None:
    shop.build([recipe], repository=tmp_path / "models")
    quantize = world.containers.ran[0]
    argv = quantize.command.argv
    assert argv[argv.index("--calib_dataset") + 1] == "/forge/calibration"
    assert argv[argv.index("--calib_size") + 1] == "64"
    mounted = quantize.inputs["calibration"]
    assert {file.name: file.read_bytes() for file in mounted.iterdir()} == world.origin.texts


def test_other_texts_are_another_checkpoint_and_the_model_stays(shop: Forge, world: World, recipe: Path) -> None:
    before = {step.name: step.key for step in shop.plan([recipe]).steps}
    world.origin.texts["more.jsonl"] = b'{"text": "other words"}\n'
    after = {step.name: step.key for step in shop.plan([recipe]).steps}
    moved = {name for name in after if before[name] != after[name]}
    assert moved == {"tiny: calibration", "tiny: checkpoint", "tiny: engine", "tiny: entry"}


def test_the_lock_pins_the_texts_that_a_build_takes(shop: Forge, world: World, recipe: Path) -> None:
    file, _ = shop.lock(recipe)
    said = json.loads(file.read_text())
    assert said["asked"]["calibration"] == {"hub": "acme/texts", "size": 64}
    assert [each["path"] for each in said["calibration"]["files"]] == ["train.jsonl"]
    world.origin.texts["more.jsonl"] = b'{"text": "other words"}\n'
    held = shop.resolve(recipe, locked=True).facts.calibration
    assert held is not None
    assert [each.path for each in held.files] == ["train.jsonl"]
    file, changed = shop.lock(recipe, upgrade=True)
    assert changed
    assert "more.jsonl" in file.read_text()


def test_a_recipe_served_once_by_the_twin_asks_no_texts(shop: Forge, world: World, recipe: Path) -> None:
    world.origin.texts.clear()
    assert shop.resolve(recipe, runtime=RuntimeKind.TWIN).facts.calibration is None


def test_doctor_looks_for_the_texts_too(shop: Forge, world: World, recipe: Path) -> None:
    told = [each.what for each in shop.examine([recipe]) if each.check == "source"]
    assert len(told) == 2
    assert any("datasets/acme/texts" in each for each in told)
    world.origin.down = True
    with pytest.raises(SourceError):
        shop.plan([recipe])


TEXTS = Calibration(hub="acme/texts")
RECIPE = Recipe(name="tiny", source=Source(hub="acme/tiny"), convert=ConvertTable(quantization="fp8", calibration=TEXTS))
MODEL = Pinned(SourceKind.HUB, "acme/tiny", "c0ffee", (FileFact("config.json", 12, "gitsha1:01"),))
PINNED = Pinned(SourceKind.HUB, "datasets/acme/texts", "beef", (FileFact("a.jsonl", 9, "gitsha1:02"),), "https://hub.example")


def test_a_lock_with_texts_reads_back_without_local_places() -> None:
    made = lock(RECIPE, MODEL, calibration=PINNED)
    assert read(write(made), "tiny.toml.lock") == made
    assert "hub.example" not in write(made)


def test_other_texts_make_a_lock_stale_in_words() -> None:
    made = lock(RECIPE, MODEL, calibration=PINNED)
    wanted = replace(RECIPE, convert=ConvertTable(quantization="fp8", calibration=Calibration(hub="acme/others")))
    assert 'calibration.hub was "acme/texts", is now "acme/others"' in stale(made, wanted)
