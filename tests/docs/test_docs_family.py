"""docs/writing-a-family.md, walked: its commands are typed and its files written in the page's order, as an author would.

It happens in an environment of its own, in which what this one has can be seen; nothing is downloaded.
"""

import os
import re
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from forge.recipe.reader import read
from forge.testing import new_plugin

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-family.md"
_BLOCK = re.compile(r'^```(?:console|\w+ title="(?P<file>[^"]+)")\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)
_TIME = re.compile(r" in [\d.]+s")
_SCRIPT = '#!/bin/sh\nexec "{python}" -m {module} "$@"\n'


def _blocks() -> Iterator[tuple[str, str]]:
    """(file, its content) for a file's block, ("", commands and what they say) for a console's."""
    for found in _BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        yield found["file"] or "", found["text"]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment in which `pip`, `pytest`, `forge` and `python` are those of a copy of this one."""
    place = tmp_path / "environment"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    inner = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    (inner / "of-the-tests.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for name, module in (("pip", "pip"), ("pytest", "pytest"), ("forge", "forge_cli")):
        (place / "bin" / name).write_text(_SCRIPT.format(python=python, module=module))
        (place / "bin" / name).chmod(0o755)
    (inner / "forge_cli.py").write_text("from forge.cli import main\nmain(prog_name='forge')\n")
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "false", "PIP_NO_DEPS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    quiet = {"PYTEST_ADDOPTS": "-p no:cacheprovider -p no:randomly", "PIP_ROOT_USER_ACTION": "ignore", "TERM": "dumb"}
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **offline, **quiet, "PATH": path, "FORGE_HOME": str(tmp_path / "home")}


def _type(text: str, here: Path, environ: dict[str, str]) -> Path:
    """Type the commands of a console's block; each line that it shows has to be said. Returns the folder where they end."""
    for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
        if command.startswith("cd "):
            here /= command.removeprefix("cd ")
            continue
        began = time.monotonic()
        done = subprocess.run(["sh", "-c", command], cwd=here, env=environ, capture_output=True, text=True, check=False)
        print(f"{time.monotonic() - began:.1f} s  {command}")
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        said = [" ".join(_TIME.sub("", line).split()) for line in done.stdout.splitlines()]
        for line in filter(None, shown.splitlines()):
            assert " ".join(line.split()) in said, f"{command}: {line!r} is not in\n{done.stdout}"
    return here


@pytest.mark.slow
@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="needs the tests to run in a virtual environment (`make test`)")
def test_the_page_takes_a_stranger_to_a_tested_plugin(tmp_path: Path, environ: dict[str, str]) -> None:
    if find_spec("setuptools") is None:  # it is not imported here: another test may have imported Python's own distutils
        pytest.skip("the new distribution is built by setuptools, which torch brings")
    began, here = time.monotonic(), tmp_path
    files: list[str] = []
    for file, text in _blocks():
        if not file:
            here = _type(text, here, environ)
            continue
        files.append(file)
        if file == "pyproject.toml":
            assert (here / file).read_text(encoding="utf-8") == text
        (here / file).parent.mkdir(exist_ok=True)
        (here / file).write_text(text, encoding="utf-8")
    recipe = here / "recipes" / "internlm2-chat-1.8b.toml"
    assert read(recipe.read_text(encoding="utf-8"), str(recipe)).name == recipe.stem
    assert files == [
        "pyproject.toml",
        "forge_internlm/__init__.py",
        "tests/test_internlm.py",
        "recipes/internlm2-chat-1.8b.toml",
    ]
    _break(here / "forge_internlm" / "__init__.py", environ)
    print(f"from nothing to a tested plugin: {time.monotonic() - began:.1f} s")


LONG = """
from forge import Checkpoint, Recipe
from forge.plan.families import Family
from forge.schema.values import BuildTable, Source
from forge.trtllm.image_table import toolchain

recipe = Recipe(name="x", source=Source(hub="o/m"), build=BuildTable(max_seq_len=40000))
try:
    Family.of(recipe, Checkpoint({"architectures": ["InternLM2ForCausalLM"]})).check(toolchain("25.08"))
except Exception as error:
    print(error)
"""


def _break(plugin: Path, environ: dict[str, str]) -> None:
    """A mistake in the finished plugin is told as the page says."""
    right = plugin.read_text(encoding="utf-8")
    plugin.write_text(right.replace('.get("rope_scaling")', '["rope_scaling"]'), encoding="utf-8")
    said = subprocess.run(["python", "-c", LONG], cwd=plugin.parent, env=environ, capture_output=True, text=True, check=True)
    (shown,) = re.findall(r"^```text\nerror: (.*?)\n    -v shows the traceback\n```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert said.stdout.strip() == shown.replace("/home/me/forge-internlm", str(plugin.parents[1]))


def test_the_pages_files_are_those_written_and_little_more(tmp_path: Path) -> None:
    page = dict(_blocks())
    new_plugin("internlm", ("InternLM2ForCausalLM",), "internlm2", tmp_path)
    for file in ("forge_internlm/__init__.py", "tests/test_internlm.py"):
        written = {line for line in (tmp_path / file).read_text(encoding="utf-8").splitlines() if line}
        missing = written - set(page[file].splitlines())
        assert len(missing) <= 4, missing
