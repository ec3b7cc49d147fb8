"""What tests share: one home with one store, and one real Triton on the real SmolLM2, started once."""

import os
import signal
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from fake_wiring import World
from forge.api.forge import Forge
from forge.api.outcome import Built
from forge.client.types import Request
from forge.serve.lookup import Target
from live_kit import Say
from patience import free_ports
from shipped import SMOLLM2

pytest_plugins = ["triton_fixture", "docker_fixture", "standin.fixtures", "tiny_served", "cloud_servers"]


# A slow machine is no fault of what is tested.
settings.register_profile("forge", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("forge")


def pytest_configure() -> None:
    """Ctrl-C reaches what the tests start, also where a shell started the tests in the background and had it ignored. Matrices
    have one thread: several wait for each other by computing, and other tests want the processor."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the work, files that wait for servers and files that compute take turns, so that they never
    all wait at once. The longest begin, and what is left for the end is short."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = sorted((each for each in files.values() if _marked(each, "slow")), key=lambda each: not _marked(each, "long"))
    quick = sorted((each for each in files.values() if not _marked(each, "slow")), key=len, reverse=True)
    items[:] = [item for turn in zip_longest(waiting, quick, fillvalue=list[pytest.Item]()) for file in turn for item in file]


def _marked(file: list[pytest.Item], name: str) -> bool:
    return any(item.get_closest_marker(name) for item in file)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """forge's home for the session; FORGE_TEST_HOME keeps one from run to run, which saves the environment's making.

    Each of xdist's workers has its own: tests look at which servers of theirs run.
    """
    kept = os.environ.get("FORGE_TEST_HOME")
    return Path(kept, os.environ.get("PYTEST_XDIST_WORKER", "")) if kept else tmp_path_factory.mktemp("home")


@pytest.fixture
def world() -> World:
    """The fakes of one test: a Forge over them is ``world.shop(home)``."""
    return World()


@pytest.fixture(scope="session")
def shop(home: Path, opened: Callable[[Path], Forge]) -> Forge:
    return opened(home)


@pytest.fixture(scope="session")
def smollm2(shop: Forge, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The demo's repository, built for real."""
    return shop.build([SMOLLM2], repository=tmp_path_factory.mktemp("smollm2") / "repository")


@pytest.fixture(scope="session")
def smollm2_checkpoint(smollm2: Built) -> Path:
    """SmolLM2 as a Hugging Face folder: weights and tokenizer in one place, by link."""
    assets = smollm2.repository / "_assets" / "smollm2-135m-instruct"
    folder = smollm2.repository.parent / "checkpoint"
    if not folder.exists():
        folder.mkdir()
        for file in (*(assets / "engines").iterdir(), *(assets / "tokenizer").iterdir()):
            if not (folder / file.name).exists():
                (folder / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="session")
def served(shop: Forge, smollm2: Built) -> Iterator[Target]:
    """The demo's repository, served by a real Triton; every end-to-end test asks this one server."""
    running = shop.serve(smollm2.repository, free_ports(), restart=False)
    yield shop.target("smollm2-135m-instruct", smollm2.repository)
    shop.stop(running)


@pytest.fixture(scope="session")
def say(shop: Forge, served: Target) -> Say:
    """Ask for one answer, whole."""

    def ask(request: Request) -> str:
        return "".join(chunk.text for chunk in shop.generate(served.address, request) if chunk.index == 0)

    return ask
