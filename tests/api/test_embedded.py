"""A program that has a Python inside may not know where a whole one is: forge plans all the same, and says what it lacks."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import forge
from forge.build.sources.wheel import WheelOrigin
from forge.client.renderer_process import Bounds, RendererProcess
from forge.errors import HostError
from forge.machine import environments
from forge.machine.probe import ThisMachine
from forge.schema.values import Environment, Pinned, Ports, SourceKind
from forge.serve.openai import sidecar
from forge.serve.server_types import Running
from forge.serve.state import Guard
from tiny_served import RECIPE, checkpoint

RUNNING = Running("/models", 1, 1.0, Ports(), (), "/log", "marker")
STARTS: dict[str, Callable[[Path], object]] = {
    "pip": lambda _: WheelOrigin(os.environ).sealed(Pinned(SourceKind.WHEEL, "tiny==1.0", "1.0", ())),
    "a chat template": lambda _: RendererProcess("{{ 1 }}", Bounds(1.0, 100)).read(),
    "OpenAI's API": lambda _: sidecar.command(Ports(), ()),
    "a guardian": lambda place: Guard.post(RUNNING, place / "state", {}),
    "an environment": lambda place: environments.adopt(
        Environment("3.11", "linux-x86_64", (), ()), "", place / "made", lambda _: None
    ),
}


@pytest.mark.parametrize("what", STARTS)
@pytest.mark.parametrize("value", [None, ""])
def test_what_needs_a_python_says_that_none_is_known(
    what: str, value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", value)
    with pytest.raises(HostError, match=r"sys\.executable is empty") as error:
        STARTS[what](tmp_path)
    assert "set sys.executable" in error.value.hint


@pytest.mark.parametrize("value", [None, ""])
def test_what_only_looks_does_without(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", value)
    assert environments.host({"PATH": "/nowhere"}).interpreter == ""
    assert ThisMachine({}).traces()


@pytest.mark.parametrize("verb", ["plan", "doctor", "lock"])
def test_verbs_end_without_a_traceback(tmp_path: Path, verb: str) -> None:
    checkpoint(tmp_path / "checkpoint")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    code = f"import sys; sys.executable = None; from forge.cli import main; main([{verb!r}, 'tiny.toml', '--json'])"
    environ = {**os.environ, "FORGE_HOME": str(tmp_path / "home")}
    done = subprocess.run((sys.executable, "-c", code), cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, HostError.exit_code), done.stderr
    assert json.loads(done.stdout)


def test_no_program_of_forges_is_started_by_a_python_unasked() -> None:
    """``unchanged.py`` puts it into a key, and ``environments.py`` looks whether there is one."""
    core = Path(forge.__file__).parent
    named = {file.name for file in core.rglob("*.py") if re.search(r"\bsys\.executable\b", file.read_text(encoding="utf-8"))}
    assert named == {"interpreter.py", "environments.py", "unchanged.py"}
