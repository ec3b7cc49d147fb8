"""A Triton that dies while it is looked after is started again, as it was, until it has died too often."""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from fake_wiring import World
from forge.api.forge import Forge
from forge.cli import main
from forge.client import Client
from forge.client.types import Request
from forge.errors import InferenceError, ServerError, Trouble
from forge.machine import processes
from forge.schema.values import Ports
from forge.serve.log import cause, last
from forge.serve.port_holders import require_free
from forge.serve.restart import BROKEN, PAUSES, SILENT, Hang, Restart, alone
from forge.serve.server import Servers
from forge.serve.server_types import Crash, Launch, Running
from forge.serve.state import States
from forge.serve.vitals import Stance
from patience import PATIENCE, free_ports, soon, spare
from tiny_served import Tiny

pytestmark = pytest.mark.long
FORGE = (sys.executable, "-c", "from forge.cli import main; main()")
ASKED = "Signal (15) received.\n"
CRASHED = "Signal (11) received.\n 0# 0x0 in tritonserver\n"
UNLOADS = 'I1128 01:09:11.682021 26717 server.cc:336] "All models are stopped, unloading models"\n'
RANK = "mpirun noticed that process rank 1 with PID 0 on node here exited on signal 9 (Killed).\n"


@pytest.mark.parametrize(
    ("status", "log", "said"),
    [
        (0, "", ""),
        (-9, "", "signal 9, SIGKILL"),
        (None, "", "no signal is in its log"),
        (None, CRASHED, "signal 11, SIGSEGV"),
        (-11, CRASHED, "signal 11, SIGSEGV"),
        (None, ASKED, ""),
        (-9, ASKED, ""),
        (3, "", "exit code 3"),
        (1, ASKED + RANK, "signal 9, SIGKILL"),
        (-9, 'prompt: what exited on signal 15, or "All models are stopped, unloading models"?\n', "signal 9, SIGKILL"),
        (-11, ASKED, "signal 11, SIGSEGV"),
        (1, UNLOADS, ""),
    ],
)
def test_of_what_a_server_died(tmp_path: Path, status: int | None, log: str, said: str) -> None:
    (tmp_path / "log").write_text(log)
    found = cause(status, tmp_path / "log")
    assert found.startswith(said) if said else found == ""


def test_the_last_of_a_log_is_what_broke(tmp_path: Path) -> None:
    entry = 'I1128 12:37:09.597664 1 model_lifecycle.cc:839] "loading"'
    (tmp_path / "log").write_text(f"E{entry[1:]}\n{entry}\ndouble free or corruption (out)\n{CRASHED}{entry}\n")
    assert last(tmp_path / "log").splitlines()[:3] == ["double free or corruption (out)", *CRASHED.splitlines()]
    (tmp_path / "log").write_text(f"E{entry[1:]}\n{entry}\n")
    assert last(tmp_path / "log") == f"E{entry[1:]}"


def test_a_full_disk_keeps_no_server_noted(tmp_path: Path) -> None:
    states, running = States(tmp_path), Running(str(tmp_path), 1, 1.0, Ports(), (), "log", "marker")
    States(tmp_path / "gone").ask(running)
    states.keep(running)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        states.forget(tmp_path, "it died")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (states.kept(), states.ended()) == ((), {})


def test_nobody_is_given_the_ports_of_one_that_comes_back(tmp_path: Path) -> None:
    ports = free_ports()
    down = Running(str(tmp_path), 0, 0.0, ports, (), "log", "marker", vigil=1)
    for host in (ports.host, "0.0.0.0", "localhost"):
        with pytest.raises(ServerError, match=f"port {ports.grpc} is taken by forge's own server .*is being started again"):
            require_free(replace(free_ports(), grpc=ports.grpc, host=host), (down,))
    require_free(replace(free_ports(), grpc=ports.grpc, host="127.0.0.2"), (down,))


def test_the_keeper_reads_what_an_older_forge_notes(tmp_path: Path) -> None:
    (tmp_path / "state").write_text(json.dumps({"pid": os.getpid(), "started": 1.0}))
    argv = (sys.executable, "-m", "forge.serve.openai.keeper", str(tmp_path / "state"), "sleep", "5")
    assert subprocess.run(argv, check=False).returncode == 0


class Dying:
    """A server that dies, and what becomes of it."""

    def __init__(self, world: World, home: Path) -> None:
        self.server = world.server
        self.running = self.server.start(Launch(home, (), ports=Ports()), lambda _: None)
        self.clock = 0.0
        self.said: list[str] = []

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def die(self, why: str = "signal 11, SIGSEGV", hung: str = "") -> bool:
        self.server.died, self.server.down, self.server.alive = why, list(self.server.alive), []
        again = Restart(
            self.server,
            lambda _, running: Launch(Path(running.repository), ()),
            lambda: self.clock,
            self.sleep,
            self.said.append,
        )
        return again.attempt(self.running.shared_memory, hung)


@pytest.fixture
def dying(world: World, tmp_path: Path) -> Dying:
    return Dying(world, tmp_path)


def test_pauses_grow_and_the_limit_ends_it(dying: Dying) -> None:
    for pause in PAUSES:
        before = dying.clock
        assert dying.die()
        assert dying.clock == before + pause
    assert not dying.die()
    (why,) = dying.server.ended().values()
    assert "died 4 times within 10 minutes: signal 11, SIGSEGV" in why


def test_one_that_dies_now_and_then_is_started_for_ever(dying: Dying) -> None:
    for _ in range(2 * len(PAUSES)):
        assert dying.die()
        dying.clock += 3600.0


def test_what_was_asked_to_end_stays_ended(dying: Dying) -> None:
    assert not dying.die("")
    assert dying.server.ended() == {}


def test_a_start_that_fails_counts_to_the_limit(dying: Dying) -> None:
    dying.server.failing.add(dying.running.repository)
    assert not dying.die()
    assert dying.clock == sum(PAUSES)
    assert "the models do not load" in next(iter(dying.server.ended().values()))


MUTE = Stance(speaks=False, stands=False)


class Quiet:
    """A server that answers nobody, looked at every five seconds."""

    def __init__(self, world: World, home: Path) -> None:
        self.server, self.clock = world.server, 0.0
        self.running = self.server.start(Launch(home, (), ports=Ports()), lambda _: None)
        self.hang = Hang(self.server, lambda: self.clock)

    def after(self, seconds: float, stance: Stance = MUTE, busy: float = 0.0) -> str:
        """What is said in the end; a process has used ``busy`` of a processor all the time, and another nothing."""
        end = self.clock + seconds
        while True:
            self.server.stands = replace(stance, cpu={1: busy * self.clock, 2: 7.0})
            if (said := self.hang.look(self.running)) or self.clock >= end:
                return said
            self.clock += 5.0


FAULT = {"/proc/1/task/7/status": "SIGABRT"}


@pytest.mark.parametrize("speaks", [False, True])
def test_one_that_hangs_in_its_own_fault_is_ended(world: World, tmp_path: Path, *, speaks: bool) -> None:
    """Some threads may answer for a while: each has a part of the heap."""
    quiet = Quiet(world, tmp_path)
    faulty = Stance(speaks=speaks, stands=False, faults=FAULT)
    assert quiet.after(BROKEN - 5, faulty) == ""
    assert quiet.after(5, faulty) == "SIGABRT, and it hung instead of ending"


def test_a_fault_in_one_thread_after_another_is_no_hang(world: World, tmp_path: Path) -> None:
    quiet = Quiet(world, tmp_path)
    for number in range(100):
        faults = {f"/proc/1/task/{number}/status": "SIGSEGV"}
        assert quiet.after(5, Stance(speaks=True, stands=False, faults=faults)) == ""


@pytest.mark.parametrize(("busy", "said"), [(0.0, "it answered nobody for 120 s"), (0.1, "")])
def test_silence_without_a_fault_has_to_be_idle_and_long(world: World, tmp_path: Path, busy: float, said: str) -> None:
    quiet = Quiet(world, tmp_path)
    assert quiet.after(SILENT - 5, busy=busy) == ""
    assert quiet.after(10 * SILENT, busy=busy).startswith(said)


def test_a_word_between_and_a_sleep_are_no_silence(world: World, tmp_path: Path) -> None:
    quiet = Quiet(world, tmp_path)
    assert quiet.after(SILENT - 5) == ""
    assert quiet.after(0, Stance(speaks=True, stands=False)) == ""
    assert quiet.after(0) == ""
    quiet.clock += 3600.0
    assert quiet.after(0) == ""


def test_what_a_debugger_or_freezer_holds_is_left_alone(world: World, tmp_path: Path) -> None:
    quiet = Quiet(world, tmp_path)
    assert quiet.after(10 * SILENT, Stance(speaks=False, stands=True, faults=FAULT)) == ""
    assert quiet.after(BROKEN - 5, Stance(speaks=False, stands=False, faults=FAULT)) == ""


def test_processes_that_nobody_sees_may_be_at_work(world: World, tmp_path: Path) -> None:
    quiet = Quiet(world, tmp_path)
    quiet.server.stands = MUTE
    for _ in range(100):
        assert quiet.hang.look(quiet.running) == ""
        quiet.clock += 5.0


def test_one_that_hung_died_of_that(dying: Dying) -> None:
    assert dying.die(hung="it answered nobody for 120 s and did nothing")
    assert "Triton died: it answered nobody for 120 s and did nothing; it is started again" in dying.said[0]


@contextmanager
def foreground(shop: Forge, repository: Path, *words: str) -> Generator[tuple["subprocess.Popen[str]", Path]]:
    """`forge serve` in the foreground, once it is ready, and the file with what it says beside its output."""
    ports, said = free_ports(), repository.parent / "stderr"
    named = {"--http-port": ports.http, "--grpc-port": ports.grpc, "--metrics-port": ports.metrics}
    options = [str(word) for pair in named.items() for word in pair]
    argv = [*FORGE, "serve", "--repository", str(repository), *options, *words]
    environ = {**os.environ, "FORGE_HOME": str(shop.home)}
    with (
        said.open("w") as stderr,
        subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=stderr, text=True) as forge,
    ):
        try:
            assert forge.stdout is not None
            assert "ready" in forge.stdout.readline()
            yield forge, said
        finally:
            forge.terminate()


def status(shop: Forge) -> tuple[int, dict[str, Any], str]:
    """`forge status`: its exit code, what it says to programs, and what to people."""
    asked = CliRunner(env={"FORGE_HOME": str(shop.home)})
    told, shown = (asked.invoke(main, ("status", "--no-ask", *words)) for words in (("--json",), ()))
    return told.exit_code, json.loads(told.stdout), shown.stdout


@pytest.fixture(scope="module")
def repository(shop: Forge, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop.build([tiny.recipe], repository=tmp_path_factory.mktemp("crash") / "repository").repository


def risen(shop: Forge, before: Running) -> Running:
    """The server once it runs again."""

    def again() -> bool:
        now = next((each for each in shop.servers() if each.nonce == before.nonce), None)
        return now is not None and now.pid not in (0, before.pid) and not now.down and _answers(now)

    assert soon(again, pause=0.2)
    return shop.server(before.repository)


def _answers(running: Running) -> bool:
    try:
        return bool(say(running))
    except InferenceError:
        return False


def say(running: Running) -> str:
    with Client(f"127.0.0.1:{running.ports.grpc}", timeout=120.0) as client:
        return client.ask(Request("tensorrt_llm_bls", "hello", 4, top_k=1)).replies[0].text


def speaks(door: openai.OpenAI) -> bool:
    try:
        return bool(door.completions.create(model="tiny", prompt="hello").choices)
    except openai.InternalServerError:  # it looks for Triton once a second
        return False


def require_told_to_wait(shop: Forge, running: Running, door: openai.OpenAI) -> None:
    """A model that is not loaded yet, while the server is started again, is no unknown one."""
    taken_out = Servers(shop.home, os.environ).unload(running, ("tensorrt_llm_bls",))
    with pytest.raises(openai.NotFoundError, match="is not ready"):
        door.models.retrieve("tiny")
    States(shop.home / "servers").keep(replace(taken_out, awaited=("tensorrt_llm_bls",)))
    for ask in (lambda: door.models.retrieve("tiny"), lambda: door.completions.create(model="tiny", prompt="hello")):
        with pytest.raises(openai.InternalServerError, match="is being started again; ask again in some seconds") as told:
            ask()
        assert (told.value.status_code, told.value.response.headers["retry-after"]) == (503, "5")
    States(shop.home / "servers").keep(running)


def lenders(shop: Forge) -> list[int]:
    """The processes for which the store keeps something."""
    return [json.loads(note.read_bytes()).get("pid", 0) for note in (shop.home / "store" / "claims").glob("*.json")]


@pytest.mark.slow
@pytest.mark.network
def test_a_detached_one_is_started_again_with_what_it_had(shop: Forge, repository: Path) -> None:
    (port,) = spare(1)
    running = shop.serve(repository, replace(free_ports(), openai=port), detach=True)
    try:
        well = say(running)
        running = Servers(shop.home, os.environ).unload(running, ("ensemble",))  # a model that was taken out stays out
        with (
            Client(f"127.0.0.1:{running.ports.grpc}") as client,
            openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=PATIENCE, max_retries=0) as door,
            ThreadPoolExecutor() as threads,
        ):
            States(shop.home / "servers").keep(replace(running, models=(*running.models, "gone")))  # not in the repository
            (stub,) = processes.stubs(running.shared_memory)["tensorrt_llm"]
            os.kill(stub.pid, signal.SIGSTOP)  # nothing is answered from now on
            asked = threads.submit(client.ask, Request("tensorrt_llm_bls", "hello", 4))
            posted = threads.submit(door.completions.create, model="tiny", prompt="hello")
            os.kill(running.pid, signal.SIGSEGV)
            error = asked.exception(PATIENCE)
            assert isinstance(error, InferenceError)
            assert (error.trouble, "starts it again" in error.hint) == (Trouble.AWAY, True)
            failed = posted.exception(PATIENCE)
            assert isinstance(failed, openai.InternalServerError)
            assert (failed.status_code, failed.response.headers["retry-after"]) == (503, "5")
            assert "ask again in some seconds" in str(failed)
            assert soon(lambda: bool(shop.server(repository).down))
            with pytest.raises(ServerError, match="is being started again"):
                shop.target("tiny", repository)
            with pytest.raises(openai.InternalServerError, match="ask again in some seconds") as refused:
                door.completions.create(model="tiny", prompt="hello")
            assert (refused.value.status_code, refused.value.response.headers["retry-after"]) == (503, "5")
            now = risen(shop, running)
            assert say(now) == well
            assert soon(lambda: speaks(door), pause=0.2)
            require_told_to_wait(shop, now, door)
        assert (now.models, now.front, now.loaded) == (running.models, running.front, running.loaded)
        assert [crash.why for crash in now.crashes] == ["signal 11, SIGSEGV"]
        assert soon(lambda: now.pid in lenders(shop)), "nobody collects what it stands on"
        watched = Path(running.log).with_suffix(".watch.log").read_text()
        assert "signal 11, SIGSEGV" in watched
        assert ", without gone: " in watched
        assert ", without gone: " in status(shop)[2]
        assert "Signal (11) received" in Path(running.log).with_suffix(".died.log").read_text()
    finally:
        shop.stop(running)
    assert processes.marked(running.shared_memory) == ()


@pytest.mark.slow
@pytest.mark.network
def test_the_foreground_ends_with_9_at_the_limit(shop: Forge, repository: Path) -> None:
    with foreground(shop, repository, "--openai-port", str(spare(1)[0])) as (forge, said):
        assert soon(lambda: bool(shop.server(repository).vigil))
        running = shop.server(repository)
        before = tuple(Crash(time.time(), "signal 9, SIGKILL") for _ in PAUSES)
        States(shop.home / "servers").keep(replace(running, crashes=before))
        os.kill(running.pid, signal.SIGKILL)
        assert forge.wait(PATIENCE) == ServerError.exit_code
    assert "died 4 times within 10 minutes: signal 9, SIGKILL" in said.read_text()
    assert processes.marked(running.shared_memory) == ()
    assert not list(processes.SHARED_MEMORY.glob(f"{running.shared_memory}*"))


@pytest.mark.slow
@pytest.mark.network
def test_without_restarts_the_first_death_ends_it(shop: Forge, repository: Path) -> None:
    with foreground(shop, repository, "--no-restart") as (forge, said):
        running = shop.server(repository)
        os.kill(running.pid, signal.SIGKILL)
        assert forge.wait(PATIENCE) == ServerError.exit_code
    assert "its Triton died: signal 9, SIGKILL" in said.read_text()
    assert processes.marked(running.shared_memory) == ()


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("how", ["forge stop", "SIGINT", "SIGTERM"])
def test_what_ends_it_while_it_is_started_again_ends_it(shop: Forge, repository: Path, how: str) -> None:
    with foreground(shop, repository) as (forge, said):
        assert soon(lambda: bool(shop.server(repository).vigil))
        running = shop.server(repository)
        os.kill(running.pid, signal.SIGKILL)
        assert soon(lambda: "server: Triton died: signal 9" in said.read_text(), pause=0.1)
        if how == "forge stop":
            shop.stop(shop.server(repository))
        else:
            forge.send_signal(signal.Signals[how])
        assert forge.wait(PATIENCE) != ServerError.exit_code
    assert processes.marked(running.shared_memory) == ()
    assert [each for each in shop.servers() if each.repository == str(repository)] == []
    assert shop.ended() == {}


@pytest.mark.slow
@pytest.mark.network
def test_one_that_was_asked_to_end_is_not_started(shop: Forge, repository: Path) -> None:
    running = shop.serve(repository, free_ports(), detach=True)
    os.kill(running.pid, signal.SIGTERM)
    assert soon(lambda: processes.marked(running.shared_memory) == (), pause=0.2)
    assert str(repository) not in [each.repository for each in shop.servers()]
    assert shop.ended() == {}


@pytest.mark.slow
@pytest.mark.network
def test_status_says_what_stands_still_is_alone_or_died(shop: Forge, repository: Path) -> None:
    running = shop.serve(repository, free_ports(), detach=True)
    try:
        os.kill(running.pid, signal.SIGSTOP)
        assert soon(lambda: processes.stopped(running.pid))
        with pytest.raises(ServerError, match=f"stands still.*kill -CONT {running.pid}"):
            shop.target("tiny", repository)
        code, told, _ = status(shop)
        assert code == ServerError.exit_code
        assert "stands still" in {each["repository"]: each["down"] for each in told["servers"]}[str(repository)]
        os.kill(running.pid, signal.SIGCONT)
        assert say(running)
        states = States(shop.home / "servers")
        early = replace(running, awaited=running.models, ports=replace(running.ports, http=spare(1)[0]))
        states.keep(early)
        with states.lock([repository]), pytest.raises(ServerError, match="is being started, and is not ready yet"):
            shop.target("tiny", repository)
        assert shop.target("tiny", repository).address  # nobody starts it
        states.keep(replace(early, ports=running.ports))
        with states.lock([repository]):
            assert shop.target("tiny", repository).address  # Triton is ready, and it is not yet noted
        states.keep(running)
        for vigil in (running.vigil, 0):
            os.kill(vigil or shop.server(repository).vigil, signal.SIGKILL)
            assert soon(lambda: not shop.server(repository).vigil, pause=0.1)
            line = alone(replace(running, vigil=0))
            assert f"{repository}: {line}" in status(shop)[2]
            with pytest.raises(ServerError, match=re.escape(line)):
                shop.serve(repository, free_ports(), detach=bool(vigil))
            if vigil:
                said = shlex.split(line.split("`")[1])
                subprocess.run((*FORGE, *said[1:]), env={**os.environ, "FORGE_HOME": str(shop.home)}, check=True)
                cared = shop.server(repository)
                assert (cared.pid, cared.vigil not in (0, vigil)) == (running.pid, True)
                server = shop._wiring.server  # pyright: ignore[reportPrivateUsage]
                late = server.watch(running, restart=True, scrub=0.0)  # one that saw it alone a moment before
                assert late.vigil == cared.vigil
        os.kill(running.pid, signal.SIGKILL)
        assert soon(lambda: not processes.started(running.pid), pause=0.1)
        _, told, shown = status(shop)
        assert told["ended"] == {str(repository): "its Triton died: signal 9, SIGKILL"}
        assert f"{repository}: its Triton died: signal 9, SIGKILL; `forge serve` starts it" in shown
        assert any("Started" in line for line in shop.logs(repository))
        Path(running.log).replace(Path(running.log).with_suffix(".died.log"))
        assert any("Started" in line for line in shop.logs(repository))
        assert processes.marked(running.shared_memory) == ()
    finally:
        shop.stop(running)
