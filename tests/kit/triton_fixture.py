"""One serving environment for the whole test session, and real servers on it.

With FORGE_TEST_HOME set to a folder, the environment is kept there and reused by the next session.
"""

import os
import shutil
import sysconfig
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from filelock import FileLock
from msgspec import Struct
from msgspec.structs import replace

from forge.machine.environments import PrivateEnvironments, backends, host
from forge.schema.twin_environment import serving_environment, twin_sources
from forge.schema.values import Environment
from forge.serve.server import Servers
from forge.serve.server_types import Launch, Running
from patience import PATIENCE, free_ports


class Serving(Struct, frozen=True):
    """The environment and the backends that servers of this session are started with; ``home`` keeps their state."""

    environment: Path
    backends: Path
    home: Path

    def launch(self, repository: Path, *models: str, detach: bool = False) -> Launch:
        """A launch of ``models`` (every folder with a config, unless named) on free ports."""
        wanted = models or tuple(sorted(config.parent.name for config in repository.glob("*/config.pbtxt")))
        return Launch(repository, wanted, self.environment, self.backends, free_ports(), detach=detach)

    def triton(self) -> Servers:
        return Servers(self.home, os.environ, patience=PATIENCE)

    def with_own_packages(self, place: Path) -> "Serving":
        """The same, and in its environment torch and transformers of the Python that runs the tests."""
        shutil.copytree(self.environment, place, symlinks=True, copy_function=os.link)
        packages = Path(sysconfig.get_path("purelib"))
        (inside,) = place.glob("lib/python3*/site-packages")
        if inside.parent.name != packages.parent.name:
            pytest.skip(f"Triton's Python models run in {inside.parent.name}, and torch is here for {packages.parent.name}")
        (inside / "tests.pth").write_text(f"{packages}\n")
        return replace(self, environment=place)

    @contextmanager
    def server(self, repository: Path, *models: str) -> Generator[Running]:
        """A running server, stopped at the end."""
        triton = self.triton()
        running = triton.start(self.launch(repository, *models), lambda _: None)
        try:
            yield running
        finally:
            triton.stop(running)


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Serving:
    """Made once per session, or taken from FORGE_TEST_HOME."""
    kept = os.environ.get("FORGE_TEST_HOME")
    place = environment(Path(kept).absolute() if kept else tmp_path_factory.mktemp("serving"))
    laid = tmp_path_factory.mktemp("backends")
    backends(place, host(os.environ).triton, laid, twin_sources())
    return Serving(place, laid, tmp_path_factory.mktemp("forge-home"))


def environment(base: Path) -> Path:
    """The serving environment of this machine in ``base``, made where it is not there yet."""
    machine = host(os.environ)
    wanted = serving_environment(machine)
    place = base / f"environment-{blake3(msgspec.json.encode(wanted)).hexdigest()[:16]}"
    base.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not place.is_dir():
            _make(wanted, machine.interpreter, place)
    return place


def _make(wanted: Environment, interpreter: str, place: Path) -> None:
    """Made elsewhere and renamed, as the store does it."""
    staging = place.with_suffix(f".{os.getpid()}")
    staging.mkdir()
    PrivateEnvironments(os.environ).make(wanted, interpreter, staging, lambda _: None)
    staging.rename(place)
