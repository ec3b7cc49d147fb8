"""Several models in one repository: added, listed, renamed, removed, and none disturbed by another."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from fake_wiring import World
from forge.api.forge import Forge
from forge.check.config import read as read_config
from forge.cli import main
from forge.errors import RepositoryError
from forge.files import copies, trees
from forge.repository import publish
from forge.schema.values import BuildOptions, Ports, Role
from nvidias_bls import bls

RENAMING = BuildOptions(rename_plain=True)
ROLES = ("ensemble", "preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")
BLS = "/app/all_models/inflight_batcher_llm/tensorrt_llm_bls/"


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def recipe(tmp_path: Path, name: str, kind: str = "twin", more: str = "") -> Path:
    image = {"twin": "", "engine": 'image = "25.08"\ngpus = "none"\n', "llmapi": 'image = "25.08"\ngpus = "none"\n'}[kind]
    file = tmp_path / f"{name}.toml"
    file.write_text(f'name = "{name}"\n[source]\nhub = "acme/{name}"\n[runtime]\nkind = "{kind}"\n{image}{more}')
    return file


def seen(folder: Path, *, but: str = "") -> dict[str, tuple[int, int, str]]:
    """Every file with its inode, the time of its last change, and its bytes; but for what belongs to the model ``but``."""
    return {
        item.relative: (item.status.st_ino, item.status.st_ctime_ns, copies.digest(item.path, item.status.st_size))
        for item in trees.walk(folder)
        if item.is_file
        and not item.relative.startswith((".forge.lock", "forge.json"))
        and not (but and (item.relative.startswith((f"{but}-", f"_assets/{but}/"))))
    }


def asked(folder: Path) -> dict[str, str]:
    """Whom a bls asks, by its parameters; the file that it loads, and the name it has."""
    config = read_config((folder / "config.pbtxt").read_text())
    names = {key: value for key, value in config.parameters.items() if key.endswith("_model_name")}
    return names | {"file": config.file, "name": config.name}


def steps(folder: Path) -> list[str]:
    return [step.model for step in read_config((folder / "config.pbtxt").read_text()).steps]


def test_a_model_is_added_under_its_prefix_beside_others(shop: Forge, models: Path, tmp_path: Path) -> None:
    shop.add([recipe(tmp_path, "a")], repository=models)
    before = seen(models)
    shop.add([recipe(tmp_path, "b")], repository=models)
    assert seen(models, but="b") == before
    assert steps(models / "b-ensemble") == ["b-preprocessing", "b-tensorrt_llm", "b-postprocessing"]
    assert asked(models / "b-tensorrt_llm_bls") == {
        "tensorrt_llm_model_name": "b-tensorrt_llm",
        "preprocessing_model_name": "b-preprocessing",
        "postprocessing_model_name": "b-postprocessing",
        "file": "",
        "name": "b-tensorrt_llm_bls",
    }


def test_a_new_version_of_one_leaves_the_others_files(shop: Forge, models: Path, tmp_path: Path) -> None:
    shop.add([recipe(tmp_path, "a"), recipe(tmp_path, "b")], repository=models)
    before = seen(models, but="a")
    config = (models / "a-tensorrt_llm/config.pbtxt").read_text()
    shop.add([recipe(tmp_path, "a", more="[build]\nmax_batch_size = 3\n")], repository=models)
    assert (models / "a-tensorrt_llm/config.pbtxt").read_text() != config
    assert seen(models, but="a") == before


def test_nothing_joins_a_plain_model_and_the_fix_is_named(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    shop.build([recipe(tmp_path, "a")], repository=models)
    before, fetched = seen(models), world.origin.fetches
    for added in ("a", "b"):
        with pytest.raises(RepositoryError, match="'a' has plain folder names") as caught:
            shop.add([recipe(tmp_path, added)], repository=models)
        assert "--rename-plain" in caught.value.hint
        assert "a-tensorrt_llm_bls" in caught.value.hint
    with pytest.raises(RepositoryError, match="'a' has plain folder names") as caught:
        shop.build([recipe(tmp_path, "b"), recipe(tmp_path, "c")], repository=models)
    assert "--rename-plain" in caught.value.hint
    assert (seen(models), world.origin.fetches) == (before, fetched)


def test_a_plain_model_joins_no_others_and_is_told(shop: Forge, models: Path, tmp_path: Path) -> None:
    shop.add([recipe(tmp_path, "a")], repository=models)
    with pytest.raises(RepositoryError, match="'b' has plain folder names") as caught:
        shop.build([recipe(tmp_path, "b")], repository=models)
    assert "forge add" in caught.value.hint


@pytest.mark.parametrize("inside", [False, True])
def test_renaming_a_plain_model_equals_building_under_the_prefix(
    shop: Forge, models: Path, tmp_path: Path, inside: bool
) -> None:
    file = recipe(tmp_path, "a")
    shop.build([file], repository=models, options=BuildOptions(inside=inside))
    file.unlink()
    shop.add([recipe(tmp_path, "b")], repository=models, options=BuildOptions(inside=inside, rename_plain=True))
    assert [(model.name, model.prefix) for model in publish.inventory(models).models] == [("a", "a"), ("b", "b")]
    assert not any((models / role).exists() for role in ROLES)
    fresh = tmp_path / "fresh" / "models"
    shop.build([recipe(tmp_path, "a")], repository=fresh, options=BuildOptions(prefixed=True, inside=inside))
    theirs = {name: text.replace(str(fresh), str(models)) for name, text in texts(fresh).items()}
    assert {name: text for name, text in texts(models).items() if name.startswith(("a-", "_assets/a/"))} == theirs
    assert shop.store.verify() == ()


def texts(folder: Path) -> dict[str, str]:
    kept = (item for item in trees.walk(folder) if item.is_file and not item.relative.startswith((".forge", "forge.json")))
    return {item.relative: item.path.read_text() for item in kept}


def test_weights_keep_their_blocks_when_a_model_is_renamed(shop: Forge, models: Path, tmp_path: Path) -> None:
    shop.build([recipe(tmp_path, "a")], repository=models)
    before = (models / "_assets/a/engines/config.json").stat().st_ino
    shop.build([recipe(tmp_path, "b")], repository=models, options=RENAMING)
    assert (models / "_assets/a/engines/config.json").stat().st_ino == before
    assert (models / "b-ensemble").is_dir()


def test_nvidias_bls_gets_its_subclass_when_it_is_renamed(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    world.containers.scripts |= {BLS + text.path: text.content for text in bls()}
    shop.build([recipe(tmp_path, "a", "engine")], repository=models)
    shop.add([recipe(tmp_path, "b", "engine")], repository=models, options=RENAMING)
    for name in "ab":
        told = asked(models / f"{name}-tensorrt_llm_bls")
        assert told["file"] == "forge_bls.py"
        assert told["preprocessing_model_name"] == f"{name}-preprocessing"
    a, b = publish.inventory(models).models
    assert [edit.what for edit in a.edits] == [edit.what for edit in b.edits]
    assert {edit.file.split("-")[0] for edit in a.edits} == {"a"}


def test_a_bls_that_takes_no_names_is_not_renamed(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    world.containers.scripts[f"{BLS}1/model.py"] = 'name = "preprocessing"\n'
    shop.build([recipe(tmp_path, "a", "engine")], repository=models)
    del world.containers.scripts[f"{BLS}1/model.py"]
    world.containers.identity = "sha256:" + "e" * 64
    with pytest.raises(RepositoryError, match=r"'a' cannot be renamed: expected") as caught:
        shop.add([recipe(tmp_path, "b", "engine")], repository=models, options=RENAMING)
    assert caught.value.where == "tensorrt_llm_bls/1/model.py"


@pytest.mark.parametrize("inside", [False, True])
def test_an_llmapi_model_is_renamed_with_its_yaml(shop: Forge, models: Path, tmp_path: Path, inside: bool) -> None:
    shop.build([recipe(tmp_path, "a", "llmapi")], repository=models, options=BuildOptions(inside=inside))
    shop.add([recipe(tmp_path, "b", "llmapi")], repository=models, options=BuildOptions(inside=inside, rename_plain=True))
    for name in "ab":
        yaml = (models / f"{name}-tensorrt_llm/1/model.yaml").read_text()
        place = f"{name}-tensorrt_llm/_assets/model" if inside else f"_assets/{name}/model"
        assert f"/forge/repository/{place}" in yaml
        assert (models / place / "config.json").is_file()
        assert read_config((models / f"{name}-tensorrt_llm/config.pbtxt").read_text()).name == f"{name}-tensorrt_llm"


def test_a_model_whose_entry_is_lost_is_not_renamed(shop: Forge, models: Path, tmp_path: Path) -> None:
    shop.build([recipe(tmp_path, "a")], repository=models)
    elsewhere = World().shop(tmp_path / "another-home")
    before = seen(models)
    with pytest.raises(RepositoryError, match="'a' cannot be renamed: the entry") as caught:
        elsewhere.add([recipe(tmp_path, "b")], repository=models, options=RENAMING)
    assert "forge build A B" in caught.value.hint
    assert seen(models) == before


def test_assets_inside_are_in_a_model_and_in_configs(shop: Forge, models: Path, tmp_path: Path) -> None:
    (model,) = shop.build([recipe(tmp_path, "a")], repository=models, options=BuildOptions(inside=True)).models
    assert not (models / "_assets").exists()
    engine, text = (read_config((models / role / "config.pbtxt").read_text()) for role in ROLES[2:0:-1])
    assert engine.parameters["gpt_model_path"] == str(models / model.asset("engines"))
    assert text.parameters["tokenizer_dir"] == str(models / model.asset("tokenizer"))
    assert (models / "tensorrt_llm/_assets/engines/config.json").is_file()
    moved = models.rename(models.with_name("moved"))
    shop.launch(moved, Ports())
    assert str(moved) in (moved / "tensorrt_llm/config.pbtxt").read_text()


def test_assets_move_inside_and_out_again_and_none_is_left(shop: Forge, models: Path, tmp_path: Path) -> None:
    file = recipe(tmp_path, "a")
    shop.build([file], repository=models)
    before = texts(models)
    shop.build([file], repository=models, options=BuildOptions(inside=True))
    assert not (models / "_assets").exists()
    shop.build([file], repository=models)
    assert texts(models) == before


def test_a_removed_model_goes_and_the_others_stay(shop: Forge, models: Path, tmp_path: Path) -> None:
    shop.build([recipe(tmp_path, "a"), recipe(tmp_path, "b")], repository=models)
    before = seen(models, but="a")
    shop.remove("a", models)
    assert seen(models) == before
    with pytest.raises(RepositoryError, match="no model 'a'") as caught:
        shop.remove("a", models)
    assert "It holds: b" in caught.value.hint
    with pytest.raises(RepositoryError, match="no such repository"):
        shop.remove("a", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_what_a_server_offers_is_listed_with_its_address(shop: Forge, models: Path, tmp_path: Path) -> None:
    shop.build([recipe(tmp_path, "a"), recipe(tmp_path, "b")], repository=models)
    assert [(one.name, one.served) for one in shop.models(models)] == [("a", ""), ("b", "")]
    running = shop.serve(models, Ports())
    assert {one.served for one in shop.models(models)} == {f"127.0.0.1:{running.ports.grpc}"}
    shop.stop(running)
    assert {one.served for one in shop.models(models)} == {""}


def test_a_list_says_runtime_names_size_and_key(shop: Forge, models: Path, tmp_path: Path) -> None:
    (model,) = shop.build([recipe(tmp_path, "a")], repository=models, options=BuildOptions(prefixed=True)).models
    (one,) = shop.models(models)
    assert (one.name, one.runtime, one.prefix, one.key) == ("a", "twin", "a", model.entry)
    assert one.models[Role.BLS] == "a-tensorrt_llm_bls"
    assert one.size == sum(item.status.st_size for item in trees.walk(models) if item.relative.startswith(("a-", "_assets"))
                           and item.is_file)  # fmt: skip


def test_the_list_verb_speaks_json_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, models = tmp_path / "home", tmp_path / "models"
    World().shop(home).build([recipe(tmp_path, "a"), recipe(tmp_path, "b")], repository=models)
    monkeypatch.setenv("FORGE_HOME", str(home))
    words = ["list", "--repository", str(models)]
    said = json.loads(CliRunner().invoke(main, [*words, "--json"]).output)
    assert [one["name"] for one in said["models"]] == ["a", "b"]
    lines = CliRunner().invoke(main, words).output.splitlines()
    assert lines[0].split() == ["NAME", "RUNTIME", "PREFIX", "SIZE", "KEY", "SERVED", "MODELS"]
    assert [line.split()[0] for line in lines[1:]] == ["a", "b"]
    assert CliRunner().invoke(main, ["remove", "a", "--repository", str(models), "-q"]).exit_code == 0
    gone = CliRunner().invoke(main, ["remove", "a", "--repository", str(models)])
    assert gone.exit_code == RepositoryError.exit_code
    assert os.listdir(models / "_assets") == ["b"]
