"""One serving environment for the whole test session, all of xdist's workers, and real servers on it.

With FORGE_TEST_HOME set to a folder, the environment is kept there and reused by the next session.
"""

import os
import shutil
import sysconfig
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from filelock import FileLock
from msgspec import Struct
from msgspec.structs import replace

from forge.api.forge import Forge
from forge.api.wiring import Wiring
from forge.build.builder import Tools
from forge.machine.environments import PrivateEnvironments, backends, host
from forge.machine.interrupt import Halt
from forge.schema.twin_environment import serving_environment, twin_sources
from forge.schema.values import Environment
from forge.schema.wheels import NO_HASHES, Hashes
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


class Lent(PrivateEnvironments):
    """Makes environments as forge does, but for the one that serves the twin: the session has made that already."""

    def __init__(self, shared: Path, halt: Halt) -> None:
        super().__init__(os.environ, halt)
        self._shared = shared

    def make(
        self, environment: Environment, interpreter: str, into: Path, log: Callable[[str], None], hashes: Hashes = NO_HASHES
    ) -> None:
        if environment == serving_environment(host(os.environ)):
            shutil.copytree(made(self._shared), into, symlinks=True, dirs_exist_ok=True)
        else:
            super().make(environment, interpreter, into, log, hashes)


class Lending(Wiring):
    """The real wiring, with the session's environment."""

    def __init__(self, home: Path, shared: Path) -> None:
        super().__init__(home, dict(os.environ), lambda _: None)
        self._shared = shared

    @cached_property
    def tools(self) -> Tools:
        tools = super().tools
        return replace(tools, environments=Lent(self._shared, tools.halt))


Opened = Callable[[Path], Forge]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all workers; FORGE_TEST_HOME where that is set."""
    own = tmp_path_factory.getbasetemp()
    everybodys = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return Path(os.environ.get("FORGE_TEST_HOME") or everybodys).absolute()


@pytest.fixture(scope="session")
def opened(shared: Path) -> Opened:
    """forge in a home of one's own, which makes for real all but the environment that is made once for all tests."""
    return lambda home: Forge(home, dict(os.environ), wiring=Lending(home, shared))


@pytest.fixture(scope="session")
def serving(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Serving:
    place = made(shared)
    laid = tmp_path_factory.mktemp("backends")
    backends(place, host(os.environ).triton, laid, twin_sources())
    return Serving(place, laid, tmp_path_factory.mktemp("forge-home"))


def made(base: Path) -> Path:
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
