"""docs/hooks.md and docs/writing-a-family.md say what is true: signatures are compared, examples are run."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import tomli

from forge import Checkpoint, hookspecs
from forge.plan.plugin import Plugin, Question
from forge.recipe.reader import read
from forge.schema.values import Recipe, Source
from forge.testing import LLAMA
from forge.testing.questions import PROMISES
from forge.trtllm.images import toolchain

DOCS = Path(__file__).parent.parent / "docs"
HOOKS = {name: thing for name, thing in vars(hookspecs).items() if name.startswith("forge_")}
TEXT = (DOCS / "hooks.md").read_text(encoding="utf-8")
SECTIONS = {section.split("(")[0]: section for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]}
QUESTION = Question(Recipe(name="m", source=Source(hub="a/b")), Checkpoint(LLAMA), toolchain("25.08"))


def _titled(page: str) -> Iterator[tuple[str, str]]:
    """(file name, content) of every titled block of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    yield from re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def test_every_hook_is_documented_and_no_other() -> None:
    assert list(SECTIONS) == list(HOOKS)
    assert set(PROMISES) == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hooks_section_has_its_signature_and_since_line(name: str) -> None:
    hook = HOOKS[name]
    section = SECTIONS[name]
    told = " ".join(section.splitlines()[0].split())
    assert told == f"{name}{_signature(hook)}"
    since = re.search(r"Since API (\d+)\.", hook.__doc__ or "")
    assert since is not None
    assert f"\nSince {since.group()[6:]} Answers: " in section
    assert int(since.group(1)) == hookspecs.SINCE.get(name, 1) <= hookspecs.API


def _signature(hook: object) -> str:
    assert callable(hook)
    spelled = str(inspect.signature(hook))
    return (
        re.sub(r"\bforge\.(schema\.values|schema\.recipe|schema\.speculation_key|errors|diagnoses)\.", "", spelled)
        .replace("TextPatch | forge.schema.values.CallPatch | forge.schema.values.JsonPatch", "Patch")
        .replace("TextPatch | CallPatch | JsonPatch", "Patch")
    )


@pytest.mark.parametrize("name", HOOKS)
def test_a_hooks_example_runs_and_answers_what_the_hook_promises(name: str) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", SECTIONS[name], re.MULTILINE | re.DOTALL)
    module = ModuleType("example")
    exec(compile(code, f"docs/hooks.md {name}", "exec"), vars(module))
    plugin = Plugin("example", module)
    assert plugin.hooks() == (name,)
    assert plugin.ask(name, PROMISES[name], QUESTION) is not None


def test_the_walk_from_nothing_to_a_tested_plugin_works(tmp_path: Path) -> None:
    files = dict(_titled("writing-a-family.md"))
    assert set(files) == {
        "pyproject.toml",
        "forge_internlm/__init__.py",
        "tests/test_internlm.py",
        "recipes/internlm2-chat-1.8b.toml",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    _install(tmp_path, tomli.loads(files["pyproject.toml"]))
    recipe = tmp_path / "recipes" / "internlm2-chat-1.8b.toml"
    assert read(recipe.read_text(encoding="utf-8"), str(recipe)).name == recipe.stem
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "tests")],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "17 passed" in ran.stdout
    asked = subprocess.run(
        [sys.executable, "-c", "from forge.testing import check_plugin; print(check_plugin('internlm'))"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() == "()"


def _install(place: Path, project: dict[str, dict[str, str]]) -> None:
    """What an installer would leave for this project: its metadata and entry points, beside the package."""
    info = place / "forge_internlm-0.1.0.dist-info"
    info.mkdir()
    head = project["project"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {head['name']}\nVersion: {head['version']}\n")
    points = tomli.loads((place / "pyproject.toml").read_text())["project"]["entry-points"]["forge"]
    (info / "entry_points.txt").write_text("[forge]\n" + "".join(f"{key} = {value}\n" for key, value in points.items()))
