"""What befalls a whole ``forge build`` in containers: it is killed, its daemon dies, its disk fills, its memory runs out."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import docker
import pytest

from docker_fixture import (
    engine_pid,
    environ,
    images_removed,
    load,
    names,
    private_engine,
    start,
)
from forge.api.forge import Forge
from forge.errors import ForgeError, HostError, RepositoryError, StoreError
from forge.events import Event
from standin import checkpoints
from standin.tree import Image

pytestmark = pytest.mark.slow
RECIPE = """
name = "tiny"
[source]
path = "tiny"
[runtime]
image = "{image}"
gpus = "none"
[convert]
dtype = "float32"
[build]
max_batch_size = 2
max_input_len = 60
max_seq_len = 100
"""
BARE = "FROM ${base}\nRUN echo ${pip}\n"
"""The stand-in has all that its tools need."""
BANNER = "== Triton Inference Server =="
"""What a step's container says before its program begins."""
HUNGRY = """
import sys, time
def limit():
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            said = open(place).read().strip()
        except OSError:
            continue
        return int(said) if said.isdigit() else sys.maxsize
    return 0
if any(word.endswith("convert_checkpoint.py") for word in sys.orig_argv):
    print("hungry", flush=True)
    while limit() > 2**30: time.sleep(0.05)
    bytearray(400 * 2**20)
"""
"""Wants more memory than it may have, as soon as there is a limit."""
OTHER = """
import os, signal, sys
from pathlib import Path
import docker
from forge.errors import ForgeError
from forge.api.forge import Forge
folder, address, banner, victim = sys.argv[1:]

def hear(event):
    if event.step == "tiny: checkpoint" and event.text == banner:
        client = docker.DockerClient(base_url=address)
        for container in client.containers.list(filters={"label": f"forge.key={event.key}"}):
            container.pause()  # so that it is not over before anybody looks
        os.kill(int(victim) or os.getpid(), signal.SIGKILL)

try:
    Forge(Path(folder) / "home", dict(os.environ), hear).build([f"{folder}/tiny.toml"], repository=f"{folder}/models")
except ForgeError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
"""Another forge, in whose conversion a process is killed: itself, or the one that is named."""


class Limited(Protocol):
    """docker's Container, whose limits can be changed while it runs."""

    def update(self, *, mem_limit: str, memswap_limit: str) -> object: ...


@dataclass(frozen=True)
class Job:
    """A recipe of a random model, to be built in a folder that holds nothing else."""

    folder: Path
    engine: str

    def killing(self, victim: int = 0) -> "subprocess.CompletedProcess[str]":
        """Built by another forge, where ``victim`` or that forge itself is killed in the conversion."""
        words = [sys.executable, "-c", OTHER, str(self.folder), self.engine, BANNER, str(victim)]
        env = {**os.environ, **environ(self.engine)}
        return subprocess.run(words, env=env, capture_output=True, text=True, check=False)

    def build(self, hear: Callable[[Event], None] = lambda event: None, home: Path | None = None) -> list[str]:
        """The steps that were made."""
        made: list[str] = []

        def listen(event: Event) -> None:
            if event.kind == "made":
                made.append(event.step)
            hear(event)

        shop = Forge(home or self.folder / "home", environ(self.engine), listen)
        shop.build([self.folder / "tiny.toml"], repository=(home or self.folder) / "models")
        assert shop.store.leftovers() == ()
        assert shop.store.verify() == ()
        return made


@pytest.fixture
def laid(standin_archive: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, its recipe and a Dockerfile."""
    checkpoints.llama(tmp_path / "tiny")
    (tmp_path / "tiny.toml").write_text(RECIPE.format(image=standin_archive.reference))
    (tmp_path / "Dockerfiles").mkdir()
    (tmp_path / "Dockerfiles" / "family.Dockerfile").write_text(BARE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def job(engine: str, standin: Image, laid: Path) -> Iterator[Job]:
    with images_removed(engine):
        yield Job(laid, engine)


def test_a_build_killed_in_conversion_is_cleared_and_made_next(job: Job, engine: str) -> None:
    before = names(engine)
    done = job.killing()
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = names(engine) - before
    assert not (job.folder / "models").exists()
    assert job.build() == ["tiny: checkpoint", "tiny: engine", "tiny: entry"]
    assert left not in names(engine)
    assert names(engine) <= before


def test_a_lost_daemon_fails_a_conversion_the_next_build_resumes(laid: Path, standin_archive: Image) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start an engine of its own to kill")
    with private_engine() as (address, folder):
        load(address, standin_archive.archive)
        job = Job(laid, address)

        done = job.killing(engine_pid(folder))
        assert done.returncode == HostError.exit_code, done.stderr
        assert "Docker went away" in done.stderr
        assert "build again: finished steps are kept" in done.stderr
        with pytest.raises(HostError, match="no Docker daemon answers"):
            job.build()
        assert start(folder) == address
        assert job.build() == ["tiny: checkpoint", "tiny: engine", "tiny: entry"]
        assert names(address) == set()


@contextmanager
def small_disk(place: Path) -> Generator[Callable[[int], None]]:
    """A file system of its own at ``place``; what is given sets its size, in kB."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}k", place], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_named_and_with_room_building_resumes(job: Job) -> None:
    """At whatever step it fills."""
    failed: list[ForgeError] = []
    with small_disk(job.folder / "small") as resize:
        home = job.folder / "small" / "home"
        for size in range(300, 5000, 75):
            resize(size)
            try:
                job.build(home=home)
                break
            except (HostError, StoreError, RepositoryError) as error:
                failed.append(error)
        assert all("disk is full" in str(each) or "No space left" in str(each) for each in failed), failed
        room: dict[type[ForgeError], str] = {RepositoryError: "Make room"}  # its disk may be another than the store's
        assert not [(str(each), each.hint) for each in failed if room.get(type(each), "forge cache gc") not in each.hint]
        assert {type(error) for error in failed} >= {HostError, StoreError}, "a container's disk and forge's own"
        assert job.build(home=home) == []


def test_a_conversion_out_of_memory_names_the_knob_to_turn(job: Job, engine: str) -> None:
    file = job.folder / "Dockerfiles" / "family.Dockerfile"
    lines = " ".join(f"{shlex.quote(line)}" for line in HUNGRY.strip().splitlines())
    file.write_text(f"{BARE}ENV PYTHONPATH=/hungry\nRUN mkdir /hungry && printf '%s\\n' {lines} > /hungry/sitecustomize.py\n")

    def starve(event: Event) -> None:
        if event.step == "tiny: checkpoint" and event.text == "hungry":
            with closing(docker.DockerClient(base_url=engine)) as client:
                for container in client.containers.list(filters={"label": f"forge.key={event.key}"}):
                    cast("Limited", container).update(mem_limit="100m", memswap_limit="100m")

    with pytest.raises(HostError, match=r"python3 .* the memory it may use .*ran out") as caught:
        job.build(starve)
    assert "workers = 1" in caught.value.hint
    file.write_text(BARE)
    assert "tiny: checkpoint" in job.build()
