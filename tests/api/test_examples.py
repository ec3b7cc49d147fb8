"""The examples do what they say, on a real server with the real model."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from forge.api.forge import Forge
from patience import free_ports
from shipped import SMOLLM2

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "What is the capital of France? Answer in one sentence."


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, home: Path, shop: Forge) -> Forge:
    """The examples' own Forge is that of the tests: what it holds is not made again."""
    monkeypatch.setenv("FORGE_HOME", str(home))
    return shop


@pytest.mark.slow
def test_one_model_is_built_served_and_asked(here: Forge, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("build_and_serve").main(str(SMOLLM2), QUESTION, tmp_path / "models", free_ports())
    assert "Paris" in capsys.readouterr().out
    assert all(server.repository != str(tmp_path / "models") for server in here.servers())


@pytest.mark.slow
def test_two_models_answer_under_their_own_names(here: Forge, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("deploy_two_models").main(QUESTION, tmp_path / "models", free_ports())
    said = capsys.readouterr().out
    assert "smollm2-135m-instruct: " in said
    assert "smollm2-135m-storyteller: " in said
    assert "Paris" in said
    assert all(server.repository != str(tmp_path / "models") for server in here.servers())
