"""A real Triton whose models' processes are killed and stopped: it is said, and they come back."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from forge.api.forge import Forge
from forge.cli import main
from forge.client import Client
from forge.client.types import Request
from forge.machine import processes
from forge.repository.config import STREAMS_PER_INSTANCE
from forge.serve.recovery import Watch
from forge.serve.server_types import Running
from patience import free_ports, soon
from tiny_served import Tiny

pytestmark = [pytest.mark.slow, pytest.mark.network]

ROLES = ("tensorrt_llm", "tensorrt_llm_bls", "preprocessing")
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
LONG = 120.0
"""Seconds that no wait of a test is meant to take, on any machine."""


@dataclass
class Ward:
    """A server that nobody watches over, and the means to look after it step by step."""

    shop: Forge
    repository: Path
    running: Running

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.running.ports.grpc}"

    def hit(self, model: str, number: signal.Signals) -> None:
        for stub in processes.stubs(self.running.shared_memory)[model]:
            os.kill(stub.pid, number)

    def watch(self) -> Watch:
        """One whose clock goes on by an hour with each look at it: what takes time elsewhere takes looks here."""
        clock = itertools.count(0.0, 3600.0)
        care = self.shop.care
        return Watch(care.server, care.plan, lambda: next(clock), time.time, lambda _: None, deadline=10.0)

    def restarts(self, model: str) -> int:
        health = self.shop.care.server.health(self.running).get(model)
        return health.restarts if health else 0

    def crashes(self) -> int:
        return sum(len(each.crashes) for each in self.shop.care.server.running() if each.nonce == self.running.nonce)

    def say(self) -> str:
        with Client(self.address, timeout=LONG) as client:
            return client.ask(Request("tensorrt_llm_bls", "hello", 4, top_k=1)).replies[0].text


@pytest.fixture(scope="module")
def repository(shop: Forge, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop.build([tiny.recipe], repository=tmp_path_factory.mktemp("ward") / "repository").repository


@pytest.fixture(scope="module")
def ward(shop: Forge, repository: Path) -> Iterator[Ward]:
    running = shop.serve(repository, free_ports(), restart=False)
    yield Ward(shop, repository, running)
    shop.stop(running)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("model", ROLES)
def test_status_names_the_dead_and_a_watch_brings_them_back(ward: Ward, model: str, number: signal.Signals) -> None:
    well, watch, before = ward.say(), ward.watch(), ward.restarts(model)
    watch.look(ward.running)
    ward.hit(model, number)
    sick = {state.model: state for state in ward.shop.care.states((ward.running,), 5.0)}
    assert not sick[model].answers
    assert sick["postprocessing"].answers
    for _ in range(3):
        watch.look(ward.running)
    assert ward.restarts(model) == before + 1
    assert ward.say() == well
    states = ward.shop.care.states((ward.running,), LONG)
    assert [state.model for state in states if not state.answers] == []
    assert f"restarted {before + 1} time" in next(state.said(time.time()) for state in states if state.model == model)


def test_reload_brings_back_what_was_killed(ward: Ward) -> None:
    well = ward.say()
    ward.hit("tensorrt_llm", signal.SIGKILL)
    ward.running = ward.shop.reload(ward.repository)
    assert ward.say() == well


def test_status_ends_with_9_while_a_model_is_dead(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_HOME", str(ward.shop.home))
    ward.hit("preprocessing", signal.SIGKILL)
    told = CliRunner().invoke(main, ["status", "--json", "--deadline", "5"])
    assert told.exit_code == 9
    states = json.loads(told.stdout)["models"]
    assert {"preprocessing"} <= {state["model"] for state in states if not state["answers"]}
    assert CliRunner().invoke(main, ["status", "--no-ask"]).exit_code == 0
    shown = CliRunner().invoke(main, ["status", "--deadline", "5"])
    assert "preprocessing: does not answer" in shown.output
    ward.running = ward.shop.reload(ward.repository)
    assert "5 of 5 answer" in CliRunner().invoke(main, ["status"]).output


def test_a_busy_model_is_not_taken_for_dead(ward: Ward) -> None:
    speaking, enough = threading.Semaphore(0), threading.Event()
    wanted = Request("tensorrt_llm_bls", "hello", 200, n=8, temperature=3.0)

    def keep_asking(client: Client) -> None:
        while not enough.is_set():
            with closing(client.generate(wanted)) as chunks:
                for _ in chunks:
                    speaking.release()
                    if enough.is_set():
                        break

    with Client(ward.address) as client, ThreadPoolExecutor(3 * STREAMS_PER_INSTANCE) as pool:
        asking = [pool.submit(keep_asking, client) for _ in range(3 * STREAMS_PER_INSTANCE)]
        try:
            for _ in range(STREAMS_PER_INSTANCE):
                assert speaking.acquire(timeout=LONG)
            states = ward.shop.care.states((ward.running,), 0.5)  # and twice as many as it carries wait before
            for deadline in (2.0, 8.0):  # on a slow machine it takes a longer look to see anybody at work
                if not all(state.answers for state in states):
                    states = ward.shop.care.states((ward.running,), deadline)
        finally:
            enough.set()
    assert [done.exception() for done in asking] == [None] * len(asking)
    assert [state.model for state in states if not state.answers] == []
    assert "tensorrt_llm_bls" in [state.model for state in states if state.busy]


def test_a_killed_process_comes_back_while_the_server_runs(shop: Forge, tiny: Tiny, tmp_path: Path) -> None:
    repository = shop.build([tiny.recipe], repository=tmp_path / "repository").repository
    running = shop.serve(repository, free_ports())
    ward = Ward(shop, repository, running)
    try:
        well = ward.say()
        ward.hit("tensorrt_llm_bls", signal.SIGKILL)
        # Triton may die of its stub's death itself, by boost's lock_exception: then the watcher starts all of it again.
        assert soon(lambda: ward.restarts("tensorrt_llm_bls") > 0 or ward.crashes() > 0)
        assert soon(lambda: all(state.answers for state in shop.care.states((running,), 10.0)))
        assert ward.say() == well
    finally:
        shop.stop(running)
    assert processes.marked(running.shared_memory) == ()
