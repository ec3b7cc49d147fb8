"""A deployment that would be served with its control open to others is told beforehand, by check and by doctor."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import check_kit as kit
from fakes import FakeOrigin
from forge.cli import main
from forge.schema.values import RuntimeKind

DEPLOYMENT = 'recipes = ["tiny.toml", "lost.toml"]\nrepository = "repository"\n'
RECIPE = 'name = "{}"\n[source]\npath = "{}"\n[runtime]\nkind = "twin"\n'


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a twin whose repository says that the Triton in ``triton`` serves it, and a recipe whose checkpoint is not there."""
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    root = kit.lay(tmp_path / "repository", kind=RuntimeKind.TWIN)
    held = json.loads((root / "forge.json").read_text())
    held["models"][0]["serving"]["triton"] = str(tmp_path / "triton")
    (root / "forge.json").write_text(json.dumps(held))
    (tmp_path / "checkpoint").mkdir()
    for name, content in FakeOrigin().files.items():
        (tmp_path / "checkpoint" / name).write_bytes(content)
    (tmp_path / "tiny.toml").write_text(RECIPE.format("tiny", "checkpoint"))
    (tmp_path / "lost.toml").write_text(RECIPE.format("lost", "nowhere"))
    return tmp_path / "d.toml"


def laid(deployment: Path, *, host: str = "", old: bool = True) -> Path:
    """Written, with a Triton that does or does not know how to restrict its ports."""
    deployment.write_text(DEPLOYMENT + (f'[ports]\nhost = "{host}"\n' if host else ""))
    server = deployment.parent / "triton" / "bin" / "tritonserver"
    server.parent.mkdir(parents=True, exist_ok=True)
    server.write_bytes(b"\0http-address\0" if old else b"\0http-restricted-api\0")
    return deployment


def told(verb: str, *words: object) -> Result:
    return CliRunner().invoke(main, [verb, *map(str, words)])


def rules(result: Result) -> list[tuple[str, str, str]]:
    found = json.loads(result.stdout)["findings"]
    return [(each["rule"], each["severity"], each["file"]) for each in found if each["rule"].startswith("open-control")]


def test_beyond_the_loopback_it_is_an_error_of_the_deployment(deployment: Path) -> None:
    said = told("check", laid(deployment, host="0.0.0.0"), "--json")
    assert rules(said) == [("open-control", "error", str(deployment))]
    assert said.exit_code == 8
    assert "has it listen at 0.0.0.0: `forge serve` refuses that" in said.stdout


@pytest.mark.parametrize("host", ["", "localhost", "127.0.0.2"])
def test_on_the_loopback_it_is_a_warning(deployment: Path, host: str) -> None:
    said = told("check", laid(deployment, host=host), "--json")
    assert rules(said) == [("open-control-here", "warning", str(deployment))]
    assert said.exit_code == 0


def test_of_a_repository_alone_it_is_a_warning(deployment: Path) -> None:
    said = told("check", laid(deployment, host="0.0.0.0").parent / "repository", "--json")
    assert rules(said) == [("open-control-here", "warning", "forge.json")]


def test_a_triton_that_keeps_its_control_is_nothing_to_tell(deployment: Path) -> None:
    assert rules(told("check", laid(deployment, host="0.0.0.0", old=False), "--json")) == []


def test_a_deployment_not_built_yet_is_said_to_be(deployment: Path) -> None:
    (laid(deployment).parent / "repository").rename(deployment.parent / "away")
    said = told("check", deployment)
    assert said.exit_code == 8
    assert f"`forge build {deployment}`" in said.stderr


def test_a_recipe_is_no_repository(deployment: Path) -> None:
    said = told("check", deployment.parent / "tiny.toml")
    assert said.exit_code == 3
    assert "this is a recipe" in said.stderr


def test_a_doctor_looks_at_every_recipe_of_a_deployment(deployment: Path) -> None:
    said = told("doctor", laid(deployment), "--json")
    found = [(each["status"], each["what"]) for each in json.loads(said.stdout)["findings"] if each["check"] == "source"]
    assert {status for status, _ in found} == {"ok", "problem"}
    assert any(what.startswith("tiny: ") for status, what in found if status == "ok")
    assert any(what.startswith("lost: ") for status, what in found if status == "problem")
    assert said.exit_code == 11
