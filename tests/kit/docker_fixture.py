"""A Docker engine for the tests and a small image in it, both had once; skipped, saying why, where no engine can be had.

The machine's own engine is used where it answers. Otherwise root gets one of the session's own by ``.ci/start_docker.sh``.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, cast

import msgspec
import pytest
from msgspec.structs import replace

from forge.machine.containers import ContainerRun
from forge.machine.docker.containers import DockerContainers
from forge.machine.docker.daemon import Daemon
from forge.machine.processes import started
from forge.schema.values import Command
from patience import PATIENCE
from standin import system
from standin.tree import File, Settings, write

SCRIPT = Path(__file__).parents[2] / ".ci" / "start_docker.sh"
DRIVER = Path(__file__).parent / "docker_driver.py"
PLAIN = "forge-tests/plain:1"
KEY = "k3y5" * 8


class Listed(msgspec.Struct, rename="pascal"):
    """A container that an engine lists."""

    id: str
    names: list[str]
    labels: dict[str, str]
    command: str


def start(folder: Path | None = None) -> str:
    """An engine's address: the machine's, or with ``folder`` a private one. RuntimeError, with its words, when it cannot be."""
    done = subprocess.run([SCRIPT, *([folder] if folder else [])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"{SCRIPT.name} exited with {done.returncode}")
    return done.stdout.strip()


def engine_pid(folder: Path) -> int:
    """The process of the private engine in ``folder``."""
    return int((folder / "run" / "docker.pid").read_text())


@contextmanager
def private_engine() -> Generator[tuple[str, Path]]:
    """An engine of one's own, (its address, its folder); stopped and cleared away afterwards."""
    # Not pytest's folder: a socket's path may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="forge-docker-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # some tests ask it as somebody else
        try:
            yield start(folder), folder
        finally:
            stop(folder)


def stop(folder: Path) -> None:
    """End what runs for the engine in ``folder``, itself first, and unmount what it mounted there.

    An engine that was killed leaves shims that nobody knows any more, and mounts.
    """
    if (folder / "run" / "docker.pid").exists():
        end(engine_pid(folder), signal.SIGTERM)
    for pid in ours(folder):
        end(pid, signal.SIGKILL)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([place for place in mounts if Path(place).is_relative_to(folder)]):
        subprocess.run(["umount", "--lazy", place], check=True)


def ours(folder: Path) -> list[int]:
    """What still runs for the engine in ``folder``: its shims, by their command lines, after the containers that they hold."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"containerd" in words[0] and any(bytes(folder) in word for word in words):
                found += [*children(int(entry.name)), int(entry.name)]
    return found


def children(pid: int) -> list[int]:
    """All that ``pid`` started, and what that started, the last first."""
    direct = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [each for child in direct for each in (*children(child), child)]


def end(pid: int, number: signal.Signals) -> None:
    """Send a signal and wait until the process is gone; after PATIENCE it is killed."""
    began = started(pid)
    deadline = time.monotonic() + PATIENCE
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        while started(pid) == began is not None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def environ(address: str) -> dict[str, str]:
    return {"DOCKER_HOST": address, "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}


def load(address: str, archive: Path) -> None:
    """Put an image archive into an engine."""
    import docker

    client = docker.DockerClient(base_url=address)
    with archive.open("rb") as file:
        client.images.load(file)
    client.close()


def listed(address: str) -> list[Listed]:
    """The containers that exist there, running or not."""
    with Daemon(environ(address)).connected() as api:
        return msgspec.convert(api.containers(all=True, filters={}), list[Listed])


MORE = (
    *("Privileged", "CapAdd", "Devices", "DeviceCgroupRules", "PidMode", "UTSMode", "UsernsMode", "CgroupParent"),
    *("Binds", "VolumesFrom", "GroupAdd", "Sysctls", "Links", "VolumeDriver"),
)
"""What can give a container more than Docker gives to each."""


def granted(address: str, container: str) -> dict[str, object]:
    """What an engine grants a container beyond that, by its own word."""
    with Daemon(environ(address)).connected() as api:
        found = cast("dict[str, dict[str, object]]", api.inspect_container(container))["HostConfig"]
    assert found["SecurityOpt"] == ["no-new-privileges"]
    assert found["IpcMode"] in ("private", "shareable")
    return {name: value for name in MORE if (value := found.get(name))}


class Actor(msgspec.Struct, rename="pascal"):
    attributes: dict[str, str]


class Told(msgspec.Struct, rename="pascal"):
    """An event of an engine."""

    actor: Actor


class Telling(Protocol):
    """docker.DockerClient, whose stubs take no fractions of a second."""

    def events(self, *, since: float, until: float, decode: bool, filters: dict[str, str]) -> Iterator[object]: ...


@contextmanager
def containers_made(address: str) -> Generator[list[str]]:
    """The names of the containers that are made meanwhile, there once it is over."""
    import docker

    client = docker.DockerClient(base_url=address)
    found: list[str] = []
    begun = time.time()
    try:
        yield found
        filters = {"type": "container", "event": "create"}
        told = cast("Telling", client).events(since=begun, until=time.time(), decode=True, filters=filters)
        found += [msgspec.convert(event, Told).actor.attributes["name"] for event in told]
    finally:
        client.close()


@contextmanager
def images_removed(address: str) -> Generator[None]:
    """Afterwards no family image is left that was not there before."""
    import docker

    client = docker.DockerClient(base_url=address)
    before = {image.id for image in client.images.list(filters={"label": "forge.key"})}
    try:
        yield
    finally:
        for image in client.images.list(filters={"label": "forge.key"}):
            if image.id and image.id not in before:
                client.images.remove(image.id, force=True)
        client.close()


def names(address: str) -> set[str]:
    """The containers of forge that exist there."""
    return {one.names[0].lstrip("/") for one in listed(address) if "forge.owner" in one.labels}


def driven(address: str, out: Path, argv: Sequence[str], user: int = 0, **more: str) -> "subprocess.Popen[str]":
    """Another forge process that runs ``argv`` in the plain image (reaps, without any), as ``user`` if that is not 0; ``more``
    are variables that it has besides."""
    return subprocess.Popen(
        [sys.executable, DRIVER, address, out, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DRIVER_USER": str(user), **more},
    )


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """The address of a Docker engine."""
    own = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not Daemon(environ(own)).check(gpus=False):
        yield own
        return
    if os.geteuid() != 0:
        pytest.skip(f"NO CONTAINER TEST RUNS: no Docker engine answers on {own}, and only root can start one")
    try:
        with private_engine() as (address, _):
            yield address
    except RuntimeError as error:
        pytest.skip(f"NO CONTAINER TEST RUNS: no Docker engine answers on {own}, and none can be started: {error}")


@pytest.fixture(scope="session")
def plain_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with this machine's Python and some programs, as ``docker load`` takes it."""
    tree = system.tree(system.python(Path(sys.executable)))
    tree |= {
        "app/examples/convert.py": File(b"print('converts')\n"),
        "app/examples/deep/er/data.bin": File(bytes(range(256))),
        "app/entrypoint.sh": File(b'#!/bin/sh\necho "== banner =="\nexec "$@"\n', 0o755),
    }
    settings = Settings(env={"PATH": "/usr/bin:/bin"}, entrypoint=("/app/entrypoint.sh",))
    return write(tree, settings, PLAIN, tmp_path_factory.mktemp("plain") / "plain.tar").archive


@pytest.fixture(scope="session")
def plain(engine: str, plain_archive: Path) -> str:
    """The reference of the plain image, held by the engine."""
    load(engine, plain_archive)
    return PLAIN


@pytest.fixture
def containers(engine: str, plain: str) -> DockerContainers:
    return DockerContainers(environ(engine))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def run_of(out: Path, *argv: str, **more: object) -> ContainerRun:
    """A run of ``argv`` in the plain image."""
    return replace(ContainerRun(PLAIN, Command(argv), {}, out, out.parent / "run.log", KEY), **more)
