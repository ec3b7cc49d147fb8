"""How far it is from the command line to a container: the calls and the files that a reader follows from `forge build` on."""

import inspect
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest
from click.testing import CliRunner

import forge
from fake_containers import FakeContainers
from fake_wiring import World
from forge.api.forge import Forge
from forge.cli import main
from forge.errors import HostError
from forge.machine.docker.containers import DockerContainers
from forge.machine.docker.daemon import Api, Daemon

CALLS, FILES = 14, 8
RECIPE = """
name = "tiny"
family = "llama"
[source]
hub = "acme/tiny"
[runtime]
kind = "engine"
gpus = "none"
"""
_FORGE = Path(forge.__file__).parent
_OF_STARTER = "frames of who started this thread"


def frames() -> list[str]:
    """forge's own functions that are under way, outermost first, each as file and name; over threads to who started them."""
    found: list[str] = []
    frame: FrameType | None = inspect.currentframe()
    while frame:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_FORGE):
            found.append(f"{file.relative_to(_FORGE)} {frame.f_code.co_name}")
        frame = frame.f_back
    before = cast("list[str]", vars(threading.current_thread()).get(_OF_STARTER, []))
    return [*before, *reversed(found)]


class RecordingDaemon(Daemon):
    """Answers as an empty Docker would, and notes who asks it for a container, which it does not make."""

    def __init__(self) -> None:
        super().__init__({})
        self.path: list[str] = []

    @contextmanager
    def connected(self) -> Generator[Api]:
        yield cast("Api", self)

    def containers(self, **_: object) -> list[object]:
        return []

    def remove_container(self, *_: object, **__: object) -> None:
        pass

    def create_container_from_config(self, _: Mapping[str, object], __: str) -> Mapping[str, str]:
        self.path = frames()
        raise HostError("no containers here")


class OnDocker(FakeContainers):
    """The fake image, whose commands are given to a Docker daemon."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__()
        docker = DockerContainers({})
        vars(docker)["_daemon"] = daemon
        vars(self)["run"] = docker.run


def test_a_build_reaches_its_container_in_fourteen_calls_eight_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = RecordingDaemon()
    world = World(containers=OnDocker(daemon))
    start = threading.Thread.start

    def started(thread: threading.Thread) -> None:
        vars(thread)[_OF_STARTER] = frames()
        start(thread)

    def here(_: type[Forge], *__: object, **___: object) -> Forge:
        return world.shop(tmp_path / "home")

    monkeypatch.setattr(threading.Thread, "start", started)
    monkeypatch.setattr(Forge, "here", classmethod(cast("Any", here)))
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(RECIPE)
    said = CliRunner().invoke(main, ["build", "tiny.toml"])
    assert "no containers here" in said.output
    assert daemon.path[0].startswith("cli/")
    assert daemon.path[-1].startswith("machine/docker/")
    calls, files = daemon.path[1:], {step.partition(" ")[0] for step in daemon.path}
    print(f"{len(calls)} calls through {len(files)} files:", *daemon.path, sep="\n  ")
    assert len(calls) <= CALLS, calls
    assert len(files) <= FILES, files
