"""The process that looks after a server's models: it looks as long as that server lives, and no failure of a look ends it."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fake_wiring import FakeWiring, World
from forge.api import vigil
from forge.errors import ServerError
from forge.schema.values import Ports
from forge.serve.recovery import LOOK
from forge.serve.server_types import Launch, Running
from forge.serve.vitals import Signs, Stance

WELL, GONE = Signs(processes=1, instances=1), Signs(processes=0, instances=1)


class Vigil:
    """One server with one model, and what happens before each look; the last of it takes the server away."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = World()
        self.server = self.world.server
        launch = Launch(home / "models", ("tensorrt_llm",), Path(), Path(), Ports())
        self.running = self.server.start(launch, lambda _: None)
        self.server.seen["tensorrt_llm"] = WELL
        self.before: list[Callable[[], object]] = []
        self.looks = 0
        monkeypatch.setattr(vigil, "Wiring", self.wiring)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def wiring(self, home: Path, _environ: Mapping[str, str], _say: Callable[[str], None]) -> FakeWiring:
        return FakeWiring(home, self.world)

    def sleep(self, seconds: float) -> None:
        assert seconds == LOOK
        self.looks += 1
        if self.before:
            self.before.pop(0)()
        else:
            self.server.stop(self.running)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vigil:
    return Vigil(tmp_path, monkeypatch)


def watch(place: Vigil, home: Path, marker: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        vigil.main(home, marker)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "Ctrl-C ends it without a traceback"
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_ends_with_the_server(place: Vigil, tmp_path: Path) -> None:
    place.before = [lambda: None] * 3
    watch(place, tmp_path, place.running.shared_memory)
    assert place.looks == 4
    assert place.server.alive == []


def test_a_server_of_another_mark_is_not_looked_at(place: Vigil, tmp_path: Path) -> None:
    watch(place, tmp_path, "another")
    assert place.looks == 0
    assert place.server.alive == [place.running]


def test_a_model_whose_process_has_ended_is_restarted(place: Vigil, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place.before = [lambda: place.server.seen.update(tensorrt_llm=GONE), *[lambda: None] * 3]
    watch(place, tmp_path, place.running.shared_memory)
    assert [told for told in place.server.told if told.startswith("restart")] == ["restart tensorrt_llm"]
    assert "tensorrt_llm" in capfd.readouterr().out


@pytest.mark.parametrize("error", [ServerError("the engine of containers is away"), OSError(28, os.strerror(28))])
def test_a_failed_look_is_told_with_its_time_then_repeated(
    place: Vigil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    real, failures = place.server.signs, [error, error]

    def signs(running: Running) -> Mapping[str, Signs] | None:
        if failures:
            raise failures.pop()
        return real(running)

    monkeypatch.setattr(place.server, "signs", signs)
    place.before = [lambda: None, lambda: place.server.seen.update(tensorrt_llm=GONE), *[lambda: None] * 3]
    watch(place, tmp_path, place.running.shared_memory)
    said = capfd.readouterr().out.splitlines()
    assert [line[20:] for line in said[:2]] == [str(error)] * 2
    assert said[0][:20].count(":") == 2
    assert "restart tensorrt_llm" in place.server.told


def at_once(_: float) -> None:
    """No time goes by."""


def test_a_triton_that_hangs_is_ended_and_told(
    place: Vigil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(0, 5)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    place.server.stands, place.server.died = Stance(speaks=False, stands=False, cpu={1: 7.0}), "signal 9, SIGKILL"
    place.before = [lambda: None] * 100
    ended: list[Running] = []
    real = place.server.kill

    def kill(running: Running) -> None:
        real(running)
        ended.append(running)
        place.server.failing.add(running.repository)
        monkeypatch.setattr(time, "sleep", at_once)

    monkeypatch.setattr(place.server, "kill", kill)
    watch(place, tmp_path, place.running.shared_memory)
    assert ended == [place.running]
    hung = "it answered nobody for 120 s and did nothing"
    said = capfd.readouterr().out
    assert f"hangs and is ended: {hung}" in said
    assert f"Triton died: {hung}; it is started again in 1 s" in said
