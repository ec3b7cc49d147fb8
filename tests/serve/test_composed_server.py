"""Two models side by side on one real Triton: each answers under its own names, through its bls and its ensemble.

The server is started as a person would: the repository and nothing else, in the default control mode.
"""

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import pytest

import skeleton_kit
import tiny_checkpoints
from forge.api.forge import Forge
from forge.check.check import Checker
from forge.client.types import Request
from forge.machine.probe import ThisMachine
from forge.repository import bls as siblings, config as repository, publish
from forge.schema.manifest import PublishedModel
from forge.schema.values import BuildOptions, Ports, Role
from forge.serve.launch import launch
from forge.serve.server import Servers
from nvidias_bls import bls
from patience import free_ports

pytestmark = pytest.mark.slow
PATIENCE = 60.0
PROMPT = "Hello world, hello"


@dataclass(frozen=True)
class Two:
    """The repository of ``one`` and ``two``, and where it is served."""

    place: Path
    models: dict[str, PublishedModel]
    ports: Ports


def recipe(folder: Path, name: str, layers: int) -> Path:
    """A random model with a tokenizer of its own, and the recipe that serves it with the twin."""
    checkpoint = folder / name
    checkpoint.mkdir()
    tiny_checkpoints.make("llama", checkpoint, vocab_size=330, num_hidden_layers=layers)
    skeleton_kit.lay(checkpoint, "byte_level")
    file = folder / f"{name}.toml"
    limits = "max_batch_size = 2\nmax_input_len = 64\nmax_seq_len = 128\n"
    file.write_text(
        f'name = "{name}"\n[source]\npath = "{name}"\n[runtime]\nkind = "twin"\n[build]\n{limits}[sampling]\nmax_tokens = 16\n'
    )
    return file


def put(target: Path, text: str) -> None:
    """Write a file anew: the one there may be the store's."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.write_text(text)


def take_nvidias(place: Path, model: PublishedModel) -> None:
    """Let a bls in NVIDIA's manner stand where forge's own stood, as a repository out of NVIDIA's image has it."""
    folder = place / model.roles[Role.BLS]
    for text in (*bls(), *siblings.beside(bls())):
        put(folder / text.path, text.content)
    config = (folder / "config.pbtxt").read_text()
    put(folder / "config.pbtxt", repository.rename(config, model.names, Role.BLS, siblings.FILE))


@pytest.fixture(scope="module")
def two(shop: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Both published with their assets inside; the bls of ``two`` is in NVIDIA's manner. Served without naming any model."""
    folder = tmp_path_factory.mktemp("two")
    recipes = [recipe(folder, "one", 2), recipe(folder, "two", 4)]
    built = shop.build(recipes, repository=folder / "models", options=BuildOptions(inside=True))
    models = {model.name: model for model in built.models}
    take_nvidias(built.repository, models["two"])
    ports = free_ports()
    wanted = launch({built.repository: publish.inventory(built.repository)}, shop.store, ports)
    command = Servers(shop.home, os.environ).command(wanted)
    words = [word for word in command.argv if not word.startswith(("--load-model", "--model-control-mode"))]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(words, env=dict(command.env), stdout=log, stderr=log, start_new_session=True)
    try:
        await_ready(server, ports, folder / "log")
        yield Two(built.repository, models, ports)
    finally:
        server.send_signal(2)
        server.wait(PATIENCE)


def await_ready(server: subprocess.Popen[bytes], ports: Ports, log: Path) -> None:
    """Until the server says that every model is ready."""
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        with (
            suppress(URLError, ConnectionError),
            urllib.request.urlopen(f"http://127.0.0.1:{ports.http}/v2/health/ready") as said,
        ):
            if said.status == 200:
                return
        time.sleep(0.1)
    pytest.fail(log.read_text()[-4000:])


def say(shop: Forge, two: Two, name: str, role: Role) -> str:
    request = Request(model=two.models[name].roles[role], prompt=PROMPT, max_tokens=12, top_k=1)
    return "".join(chunk.text for chunk in shop.generate(f"127.0.0.1:{two.ports.grpc}", request))


@pytest.mark.parametrize("role", [Role.BLS, Role.ENSEMBLE])
def test_each_model_answers_under_its_own_names(shop: Forge, two: Two, role: Role) -> None:
    said = {name: say(shop, two, name, role) for name in two.models}
    assert all(said.values())
    assert said["one"] != said["two"]


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_models_bls_says_what_its_ensemble_says(shop: Forge, two: Two, name: str) -> None:
    assert say(shop, two, name, Role.BLS) == say(shop, two, name, Role.ENSEMBLE)


def test_the_check_finds_nothing_in_it(shop: Forge, two: Two) -> None:
    assert Checker(shop.store, ThisMachine({})).check(two.place).findings == ()
