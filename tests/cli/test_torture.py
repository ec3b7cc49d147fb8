"""A few turns of the campaigns that ``make torture`` goes on with for as long as it is told; they find what is left."""

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

import torture
from docker_fixture import PLAIN, environ
from forge.api.forge import Forge
from forge.machine.docker import owners
from forge.machine.docker.daemon import Daemon
from forge.machine.processes import SHARED_MEMORY
from forge.serve.state import States
from patience import PATIENCE, spare
from standin import checkpoints
from torture_docker import containers_left
from torture_left import in_time, left
from torture_turns import LONG, VERBS, lay

KIT = Path(torture.__file__).parent
SHARED = ("environment", "backends", "converter")
"""Steps that every recipe of the twin stands on."""


@pytest.fixture(scope="module")
def made(shop: Forge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which all of these stand."""
    folder = tmp_path_factory.mktemp("torture")
    checkpoints.llama(folder / "checkpoint", LONG)
    lay(folder / "one.toml")
    shop.build([folder / "one.toml"], repository=folder / "models")
    for held in shop.store.artifacts():
        if held.manifest.provenance.step in SHARED:  # made once for the session
            shutil.copytree(held.path.parent, folder / "home" / held.path.parent.relative_to(shop.home), symlinks=True)
    return folder / "home"


def told(name: str, *words: str) -> str:
    """What a campaign says in the end; it has found nothing wrong."""
    command = [sys.executable, str(KIT / name), *words, "--seed", os.environ.get("FORGE_TORTURE_SEED", "4")]
    environ = {**os.environ, "PYTHONPATH": str(KIT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_whatever_is_killed_nothing_is_lost(made: Path) -> None:
    said = told("torture.py", "--kills", str(len(VERBS)), "--short", "--homes", "1", "--no-docker", "--home", str(made))
    assert re.search(rf"seed \d+: {len(VERBS)} kills .* 0 faults", said)
    assert {line.partition(" ")[0] for line in said.splitlines()} >= {*VERBS}


@pytest.mark.slow
def test_eight_builders_lose_nothing_to_each_other(made: Path) -> None:
    said = told("torture_rounds.py", "--rounds", "1", "--home", str(made))
    assert re.search(r"1 rounds of 8 builders, 0 faults", said)


@contextmanager
def leak(kind: str, folder: Path, port: int) -> Generator[None]:
    """Something that a killed forge might leave, until the test is over."""
    mark = States(folder / "home" / "servers").marker(folder / "models")
    if kind == "process":
        with subprocess.Popen(["sleep", "300"], env={"FORGE_HOME": str(folder / "home")}, start_new_session=True) as process:
            yield
            process.kill()
    elif kind == "shared memory":
        region = SHARED_MEMORY / f"{mark}-planted"
        region.touch()
        yield
        region.unlink()
    elif kind == "port":
        with socket.create_server(("127.0.0.1", port)):
            yield
    elif kind == "lock":
        with (folder / "home" / "store.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    elif kind == "temporary":
        (folder / "tmp" / f"forge-{2**22 + 1}-left").mkdir(parents=True)  # above what Linux gives to a process
        yield
    else:
        (folder / "models" / ".forge").mkdir(parents=True)
        yield


@pytest.mark.parametrize("kind", ["process", "shared memory", "port", "lock", "temporary", "publish"])
def test_a_planted_leak_is_found_by_the_campaign(tmp_path: Path, kind: str) -> None:
    (tmp_path / "home").mkdir()
    (port,) = spare(1)
    places = (tmp_path, tmp_path / "home", (tmp_path / "models",), (port,))
    assert left(*places) == []
    with leak(kind, tmp_path, port):
        (found,) = in_time(*places, grace=0.3)
        assert kind in found


def test_a_process_of_a_neighbour_is_no_leak(tmp_path: Path) -> None:
    """Of home-1, where home is looked at: of six homes beside each other one is called like the others' beginning."""
    (tmp_path / "home").mkdir()
    environ = {"FORGE_HOME": str(tmp_path / "home-1" / "home")}
    with subprocess.Popen(["sleep", "300"], env=environ, start_new_session=True) as process:
        try:
            assert left(tmp_path / "home", tmp_path / "home", (), ()) == []
        finally:
            process.kill()


@pytest.mark.slow
def test_a_planted_container_is_found_by_the_campaign(tmp_path: Path, engine: str, plain: str) -> None:
    name = owners.fresh_name("p1anted" * 3)
    with Daemon(environ(engine)).connected() as api:
        before = containers_left(engine, tmp_path)
        api.create_container_from_config({"Image": PLAIN, "Cmd": ["true"], "Labels": owners.labels("p1anted")}, name)
        try:
            assert set(containers_left(engine, tmp_path)) - set(before) == {f"container {name}"}
        finally:
            owners.remove(api, name)
