"""`forge new-plugin` writes a distribution that is whole, takes no name that would not do, and overwrites nothing."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import tomli
from click.testing import CliRunner

from forge import hookspecs
from forge.cli import main
from forge.errors import ForgeError
from forge.testing import check_plugin, new_plugin


def _module(file: Path) -> ModuleType:
    module = ModuleType("forge_mine")
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), vars(module))
    return module


def test_what_is_written_passes_the_kit(tmp_path: Path) -> None:
    files = new_plugin("my-model", ("MyForCausalLM", "YourForCausalLM"), "mine", tmp_path / "new")
    names = [file.relative_to(tmp_path / "new").as_posix() for file in files]
    assert names == ["pyproject.toml", "README.md", "forge_my_model/__init__.py", "tests/test_my_model.py"]
    assert all("{{" not in file.read_text(encoding="utf-8") for file in files)
    project = tomli.loads(files[0].read_text(encoding="utf-8"))
    assert project["project"]["name"] == "forge-my-model"
    assert project["project"]["entry-points"]["forge"] == {"my-model": "forge_my_model"}
    module = _module(files[2])
    assert check_plugin(module) == ()
    assert module.forge_architectures() == ("MyForCausalLM", "YourForCausalLM")
    assert (module.FORGE_API, module.SCRIPTS) == (hookspecs.API, "mine")
    compile(files[3].read_text(encoding="utf-8"), "test", "exec")


@pytest.mark.parametrize(
    ("name", "architecture", "scripts", "told"),
    [
        ("Mine", "XForCausalLM", "", "cannot be a family's name"),
        ("../x", "XForCausalLM", "", "cannot be a family's name"),
        ("a" * 65, "XForCausalLM", "", "cannot be a family's name"),
        ("9x", "XForCausalLM", "", "cannot be a family's name"),
        ("gemma", "XForCausalLM", "", "there is a plugin 'gemma' already"),
        ("mine", 'X"; import os', "", "cannot be an architecture"),
        ("mine", "XForCausalLM", "../qwen", "cannot be a folder of scripts"),
    ],
)
def test_an_unfit_name_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, architecture: str, scripts: str, told: str
) -> None:
    with pytest.raises(ForgeError, match=told) as refused:
        new_plugin(name, (architecture,), scripts, tmp_path / "new")
    assert refused.value.hint
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ForgeError, match="there is something already"):
        new_plugin("mine", ("XForCausalLM",), folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ForgeError, match="there is something already"):
        new_plugin("mine", ("XForCausalLM",), folder=tmp_path / "file")


def test_the_verb_says_what_it_wrote_and_who_serves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["new-plugin", "mine", "--architecture", "LlamaForCausalLM", "--json"])
    told = json.loads(done.stdout)
    assert told["folder"] == "forge-mine"
    assert all((tmp_path / file).is_file() for file in told["files"])
    assert 'served already by llama: a recipe has to say family = "mine"' in done.stderr
    assert CliRunner().invoke(main, ["new-plugin", "mine"]).exit_code == 2
