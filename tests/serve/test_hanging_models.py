"""A real Triton whose models' processes are stopped: OpenAI's port, `status` and its watch say so, and a client hears of it.

Every call has a time of its own: a test of what hangs must not.
"""

import http.client
import json
import os
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from forge.api.forge import Forge
from forge.client import Client
from forge.client.types import Request
from forge.errors import InferenceError
from forge.machine import processes
from forge.serve.server_types import Running
from patience import free_ports, soon, spare
from tiny_served import RECIPE, Tiny

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.network]

ROLES = ("tensorrt_llm", "tensorrt_llm_bls", "preprocessing", "postprocessing")
LONG = 120.0
"""Seconds that no call of these is meant to take, on any machine."""
SILENT = 5
"""Seconds after which a client gives up a model that says nothing: the recipe's."""


@dataclass(frozen=True)
class Served:
    """A server with OpenAI's API beside it."""

    shop: Forge
    running: Running

    def get(self, path: str, body: dict[str, object] | None = None) -> tuple[int, Any]:
        """The status and the document at ``path`` of OpenAI's port."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.running.ports.openai, timeout=LONG)) as connection:
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
            response = connection.getresponse()
            text = response.read()
        return response.status, json.loads(text) if text else None

    def hit(self, model: str, number: signal.Signals) -> None:
        for stub in processes.stubs(self.running.shared_memory)[model]:
            os.kill(stub.pid, number)

    @contextmanager
    def stopped(self, model: str) -> Generator[None]:
        """Not to be continued afterwards: Triton 2.51 may abort then, in a lock that the stub had."""
        self.hit(model, signal.SIGSTOP)
        try:
            yield
        finally:
            self.shop.reload(Path(self.running.repository))

    def restarts(self, model: str) -> int:
        health = self.shop.care.server.health(self.running).get(model)
        return health.restarts if health else 0


def build(shop: Forge, tiny: Tiny, place: Path) -> Path:
    recipe = tiny.recipe.with_name("impatient.toml")
    recipe.write_text(f"{RECIPE}\n[limits]\nmax_first_seconds = {SILENT}\nmax_silent_seconds = {SILENT}\n")
    return shop.build([recipe], repository=place / "repository").repository


@contextmanager
def serving(shop: Forge, repository: Path, *, restart: bool) -> Generator[Served]:
    (port,) = spare(1)
    running = shop.serve(repository, replace(free_ports(), openai=port), restart=restart)
    try:
        yield Served(shop, running)
    finally:
        shop.stop(running)
    assert processes.marked(running.shared_memory) == ()


@pytest.fixture(scope="module")
def served(shop: Forge, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = build(shop, tiny, tmp_path_factory.mktemp("hanging"))
    with serving(shop, repository, restart=False) as one:
        yield one


def well(served: Served) -> bool:
    return served.get("/health")[0] == 200


@pytest.mark.parametrize("model", ROLES)
def test_openais_port_says_what_hangs_and_what_to_do(served: Served, model: str) -> None:
    assert soon(lambda: well(served), LONG)
    assert served.get("/health")[1] == {"status": "ok", "models": {"tiny": {"state": "answers"}}}
    with served.stopped(model):
        assert soon(lambda: not well(served), LONG)  # what was found out a moment ago is believed for that long
        status, said = served.get("/health")
        assert status == 503
        assert said["status"] == "failing"
        assert said["models"]["tiny"]["state"] == "dead"
        assert f"{model} does not answer" in said["error"]["message"]
        assert "forge reload" in said["error"]["message"]
        assert served.get("/v1/models")[1]["data"] == []
        assert served.get("/v1/models/tiny")[0] == 503
        assert served.get("/live") == (200, None)
        states = {state.model: state for state in served.shop.care.states((served.running,), 1.0)}
        assert not states[model].answers
    assert soon(lambda: well(served), LONG)
    assert [listed["id"] for listed in served.get("/v1/models")[1]["data"]] == ["tiny"]


@pytest.mark.parametrize("model", ["tensorrt_llm", "preprocessing"])
def test_a_hanging_models_client_is_told_with_the_fix(served: Served, model: str) -> None:
    with served.stopped(model):
        status, said = served.get("/v1/completions", {"model": "tiny", "prompt": "hello", "max_tokens": 4})
        assert status in (503, 504)  # Triton may have noticed by then
        assert "forge status" in said["error"]["message"]
        wanted = Request("tensorrt_llm_bls", "hello", 4, first_seconds=SILENT, silent_seconds=SILENT)
        with Client(f"127.0.0.1:{served.running.ports.grpc}", timeout=LONG) as client:
            with pytest.raises(InferenceError) as caught:
                list(client.generate(wanted))
            assert "forge status" in caught.value.hint
    assert soon(lambda: well(served), LONG)
    assert served.get("/v1/completions", {"model": "tiny", "prompt": "hello", "max_tokens": 4})[0] == 200


def test_one_that_hangs_is_not_busy_because_another_computes(served: Served) -> None:
    enough, speaking = threading.Event(), threading.Semaphore(0)

    def keep_computing() -> None:
        wanted = Request("tensorrt_llm", "", 200, n=8, temperature=3.0, tokens=(1, 2, 3))
        with Client(f"127.0.0.1:{served.running.ports.grpc}", timeout=LONG) as client:
            while not enough.is_set():
                with closing(client.generate(wanted)) as chunks:
                    for _ in chunks:
                        speaking.release()
                        if enough.is_set():
                            return

    asking = threading.Thread(target=keep_computing)
    asking.start()
    try:
        assert speaking.acquire(timeout=LONG)
        with served.stopped("preprocessing"):
            assert soon(lambda: not well(served), LONG)
            states = {state.model: state for state in served.shop.care.states((served.running,), 5.0)}
        assert (states["preprocessing"].answers, states["preprocessing"].busy) == (False, False)
    finally:
        enough.set()
        asking.join(LONG)
    assert not asking.is_alive()
    assert soon(lambda: well(served), LONG)


def test_a_killed_models_clients_are_told_with_the_fix(served: Served) -> None:
    served.hit("tensorrt_llm_bls", signal.SIGKILL)
    status, said = served.get("/v1/completions", {"model": "tiny", "prompt": "hello", "max_tokens": 4})
    assert (status, said["error"]["code"]) == (503, "model_dead")
    assert "forge reload" in said["error"]["message"]
    assert soon(lambda: not well(served), LONG)
    served.shop.reload(Path(served.running.repository))
    assert soon(lambda: well(served), LONG)


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "preprocessing"])
def test_what_is_stopped_under_a_watch_comes_back_by_itself(shop: Forge, tiny: Tiny, tmp_path: Path, model: str) -> None:
    with serving(shop, build(shop, tiny, tmp_path), restart=True) as served:
        assert well(served)
        served.hit(model, signal.SIGSTOP)
        assert soon(lambda: served.restarts(model) > 0, LONG)
        assert soon(lambda: well(served), LONG)
        assert served.get("/v1/completions", {"model": "tiny", "prompt": "hello", "max_tokens": 4})[0] == 200
