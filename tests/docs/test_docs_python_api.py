"""docs/python-api.md names every method of Forge, and its examples run: a model is built, served, asked and measured."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import verify_kit
from forge import AsyncForge, Forge
from patience import free_ports

PAGE = (Path(__file__).parents[2] / "docs" / "python-api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r'^```python title="[^"]+"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
ROWS = re.findall(r"^\| (`.+?) \| (.+) \|$", PAGE, re.MULTILINE)
METHODS = {name: each for kind in Forge.__mro__[:-1] for name, each in vars(kind).items() if not name.startswith("_")}


def test_every_public_method_is_in_a_table_and_no_other() -> None:
    told = {name for cell, _ in ROWS for name in re.findall(r"`(?:Forge\.)?([a-z_]+)[`(]", cell)}
    assert told == {*METHODS, "home"}


def test_the_shown_arguments_of_a_method_are_its_own() -> None:
    for cell, _ in ROWS:
        for name, shown in re.findall(r"`(?:Forge\.)?([a-z_]+)\(([a-z_, =]+)\)`", cell):
            method = getattr(Forge, name)
            taken = list(inspect.signature(method).parameters)
            assert {word.strip(" =") for word in shown.split(",")} <= {*taken}, name


@pytest.mark.slow
def test_the_examples_run(home: Path, tmp_path: Path) -> None:
    """All in one interpreter, with a tiny model in the place of the page's."""
    ports = free_ports()
    verify_kit.checkpoint(tmp_path / "checkpoint")
    recipe = verify_kit.recipe(tmp_path, "tiny")
    program = "\n".join(EXAMPLES).replace("recipes/smollm2-135m-instruct.toml", str(recipe))
    program = program.replace("smollm2-135m-instruct", "tiny").replace("8000", str(ports.http))
    program = program.replace("8001", str(ports.grpc)).replace("8002", str(ports.metrics))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "FORGE_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(EXAMPLES) == 6
    assert "['tiny'] whole" in done.stdout
    assert "as its checkpoint" in done.stdout
    assert done.stdout.endswith("['tiny']\n")


def test_the_asyncio_face_has_the_verbs_that_are_named() -> None:
    named = PAGE.split("It has `examine`", 1)[1].split("\n\n", 1)[0]
    verbs = {name for name in vars(AsyncForge) if not name.startswith("_")} - {"here"}
    assert {"examine", *re.findall(r"`([a-z]+)`", named)} == verbs
