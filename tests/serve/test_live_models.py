"""A real Triton whose models are added, replaced and taken out while it answers."""

import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.json import encode
from msgspec.structs import replace

import tiny_models
from forge.client.grpc import TritonClient
from forge.client.types import Request
from forge.errors import ServerError
from forge.serve.server_types import Launch, RepositoryFolders, Running
from patience import PATIENCE, soon
from triton_fixture import Serving

pytestmark = [pytest.mark.slow, pytest.mark.network]

VERSION = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        words = np.array([[b"VERSION"]], dtype=np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("text_output", words)]) for _ in requests]
"""
WORDS = 350


@dataclass
class Stream:
    """One long answer, read by a thread of its own while other things happen."""

    running: Running
    words: list[str] = field(default_factory=list[str])
    failed: list[Exception] = field(default_factory=list[Exception])

    def __enter__(self) -> "Stream":
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        soon(lambda: bool(self.words or self.failed))
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE)

    @property
    def going(self) -> bool:
        return self._thread.is_alive()

    def _read(self) -> None:
        ports = self.running.ports
        request = Request(model="speaker", prompt=" ".join(map(str, range(WORDS))), max_tokens=WORDS)
        try:
            for chunk in TritonClient().generate(f"{ports.host}:{ports.grpc}", request):
                self.words += chunk.text.split()
        except Exception as error:  # noqa: BLE001  # whatever it is, the test tells it
            self.failed.append(error)


def lay(repository: Path, name: str, source: str) -> None:
    """Put a model there as a publish does: a whole folder in the place of the one before."""
    staged = repository.parent / "staged"
    tiny_models.lay(staged, name, source)
    if (repository / name).exists():
        (repository / name).rename(repository.parent / f"old-{time.monotonic_ns()}")
    (staged / name).rename(repository / name)


def ask(running: Running, model: str) -> str:
    given = {"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": ["?"]}
    url = f"http://{running.ports.host}:{running.ports.http}/v2/models/{model}/infer"
    with urllib.request.urlopen(url, data=encode({"inputs": [given]}), timeout=PATIENCE) as answer:
        return str(answer.read())


@pytest.fixture(scope="module")
def served(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Launch, Running]]:
    """Two repositories in one server: the first has a model that streams, the second is empty but for one that answers."""
    base = tmp_path_factory.mktemp("live")
    first, second = base / "first" / "repository", base / "second" / "repository"
    tiny_models.lay(first, "speaker", tiny_models.SPEAKER, speaks=True, decoupled=True)
    tiny_models.lay(second, "echo", tiny_models.IDENTITY)
    launch = replace(
        serving.launch(first), models=("speaker", "echo"), several=(RepositoryFolders(first), RepositoryFolders(second))
    )
    servers = serving.triton()
    running = servers.start(launch, lambda _: None)
    yield launch, running
    servers.stop(running)


def now(serving: Serving, running: Running) -> Running:
    return next(one for one in serving.triton().running() if one.pid == running.pid)


def test_a_stream_goes_on_while_other_models_come_and_go(serving: Serving, served: tuple[Launch, Running]) -> None:
    launch, running = served
    place, servers, before = launch.several[1].repository, serving.triton(), set(now(serving, running).models)
    with Stream(running) as stream:
        lay(place, "other", VERSION.replace("VERSION", "one"))
        servers.load(running, launch, ["other"], print)
        assert "one" in ask(running, "other")
        assert set(now(serving, running).models) == before | {"other"}
        lay(place, "other", VERSION.replace("VERSION", "two"))
        servers.load(running, launch, ["other"], print)
        assert "two" in ask(running, "other")
        servers.unload(running, ["other"])
        with pytest.raises(OSError, match="404"):
            ask(running, "other")
        assert set(now(serving, running).models) == before
        assert stream.going, "the stream ended before all was done: say more words"
    assert not stream.failed
    assert stream.words == [str(number) for number in range(WORDS)]


def test_a_version_that_does_not_load_leaves_the_old_answering(serving: Serving, served: tuple[Launch, Running]) -> None:
    launch, running = served
    place, servers = launch.several[1].repository, serving.triton()
    lay(place, "kept", VERSION.replace("VERSION", "one"))
    servers.load(running, launch, ["kept"], print)
    lay(place, "kept", tiny_models.BROKEN)
    with pytest.raises(ServerError, match="model 'kept' did not load") as caught:
        servers.load(running, launch, ["kept"], print)
    assert "the tokenizer folder is empty" in str(caught.value)
    assert "one" in ask(running, "kept")
    lay(place, "kept", VERSION.replace("VERSION", "three"))
    servers.load(running, launch, ["kept"], print)
    assert "three" in ask(running, "kept")


def test_a_model_taken_out_first_says_all_it_was_asked(serving: Serving, served: tuple[Launch, Running]) -> None:
    launch, running = served
    servers = serving.triton()
    with Stream(running) as stream:
        servers.unload(running, ["speaker"])
        assert not stream.going or len(stream.words) == WORDS
    assert (len(stream.words), stream.failed) == (WORDS, [])
    servers.load(running, launch, ["speaker"], print)


def test_a_model_that_asks_its_server_elsewhere_is_not_loaded(serving: Serving, served: tuple[Launch, Running]) -> None:
    launch, running = served
    place, told = launch.several[1].repository, list[str]()
    before = now(serving, running).models
    lay(place, "late", tiny_models.ASKS_ALWAYS)
    with pytest.raises(ServerError, match="late asks its own server at localhost:8001") as caught:
        serving.triton().load(running, launch, ["late"], told.append)
    assert f"gRPC is to listen at 127.0.0.1:{running.ports.grpc}" in caught.value.what
    assert now(serving, running).models == before
    lay(place, "late", "# as localhost:8001 would be\n" + tiny_models.IDENTITY)
    serving.triton().load(running, launch, ["late"], told.append)
    assert ["late names localhost:8001" in line for line in told] == [True]


def test_a_server_on_two_repositories_keeps_others_from_either(serving: Serving, served: tuple[Launch, Running]) -> None:
    launch, running = served
    second = launch.several[1].repository
    with pytest.raises(ServerError, match="runs on this repository already") as caught:
        serving.triton().start(serving.launch(second, "echo"), lambda _: None)
    assert caught.value.where == str(second)
    assert now(serving, running).repositories == (running.repository, str(second))


def test_a_server_that_has_ended_is_said_to_have(serving: Serving, tmp_path: Path) -> None:
    tiny_models.lay(tmp_path / "repository", "identity", tiny_models.IDENTITY)
    launch = serving.launch(tmp_path / "repository")
    with serving.server(launch.repository) as running:
        os.kill(running.pid, 9)
        while serving.triton().alive(running):
            time.sleep(0.02)
        with pytest.raises(ServerError, match="has ended"):
            serving.triton().load(running, launch, ["identity"], print)
