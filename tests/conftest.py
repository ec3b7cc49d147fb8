"""What tests share: one home with one store, and one real Triton on the real SmolLM2, started once."""

import os
import signal
from collections.abc import Iterator
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
    """Ctrl-C reaches what the tests start, also where a shell started the tests in the background and had it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
def shop(home: Path) -> Forge:
    return Forge(home, dict(os.environ))


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
    running = shop.serve(smollm2.repository, free_ports())
    yield shop.target("smollm2-135m-instruct", smollm2.repository)
    shop.stop(running)


@pytest.fixture(scope="session")
def say(shop: Forge, served: Target) -> Say:
    """Ask for one answer, whole."""

    def ask(request: Request) -> str:
        return "".join(chunk.text for chunk in shop.generate(served.address, request) if chunk.index == 0)

    return ask
