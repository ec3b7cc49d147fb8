"""A real Triton, started, watched and stopped."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
from msgspec.structs import replace

import tiny_models
from forge.errors import HostError, ServerError
from forge.machine import processes, unlisted
from forge.machine.libraries import read_layout
from forge.serve import ready
from forge.serve.process import TritonProcess
from forge.serve.server import Servers
from forge.serve.server_types import Running
from forge.serve.vitals import Health
from patience import free_ports, soon
from stuck import in_fault
from triton_fixture import Serving

pytestmark = [pytest.mark.slow, pytest.mark.network]

FOREGROUND = """
import os, sys, time
from pathlib import Path
from forge.serve.server import Servers
from forge.serve.server_types import Launch; from forge.schema.values import Ports
home, repository, environment, backends, detach, *ports = sys.argv[1:]
launch = Launch(Path(repository), ("identity",), Path(environment), Path(backends), Ports(*map(int, ports)),
                detach=detach == "detach")
running = Servers(Path(home), os.environ).start(launch, lambda line: None)
print(running.pid, flush=True)
if detach != "detach":
    time.sleep(600)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model that works."""
    tiny_models.lay(tmp_path / "repository", "identity", tiny_models.IDENTITY)
    return tmp_path / "repository"


def left_of(running: Running) -> tuple[list[int], list[str]]:
    """Processes and shared-memory regions that are still there."""
    regions = [region.name for region in processes.SHARED_MEMORY.glob(f"{running.shared_memory}*")]
    return list(processes.marked(running.shared_memory)), regions


def other_forge(serving: Serving, repository: Path, detach: str) -> subprocess.Popen[str]:
    """Another process that starts a server and, unless detached, stays; its first line is the server's pid."""
    launch = serving.launch(repository)
    ports = [str(port) for port in (launch.ports.http, launch.ports.grpc, launch.ports.metrics)]
    argv = [sys.executable, "-c", FOREGROUND]
    argv += [str(serving.home), str(repository), str(serving.environment), str(serving.backends), detach, *ports]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def gone(running: Running) -> bool:
    """Wait until nothing is left of a server."""
    return soon(lambda: left_of(running) == ([], []))


def test_start_returns_when_all_is_ready_stop_leaves_nothing(serving: Serving, repository: Path) -> None:
    tiny_models.lay(repository, "second", tiny_models.IDENTITY)
    triton = serving.triton()
    lines: list[str] = []
    running = triton.start(serving.launch(repository), lines.append)
    assert running in triton.running()
    assert any("Started GRPCInferenceService" in line for line in lines)
    assert len(left_of(running)[0]) >= 3  # the server and a stub for each model
    triton.stop(running)
    assert left_of(running) == ([], [])
    assert not triton.alive(running)
    assert running not in triton.running()


def test_a_broken_model_is_named_with_its_reason_nothing_stays(serving: Serving, repository: Path) -> None:
    tiny_models.lay(repository, "broken", tiny_models.BROKEN)
    triton = serving.triton()
    with pytest.raises(ServerError) as caught:
        triton.start(serving.launch(repository), lambda _: None)
    assert "model 'broken' did not load" in str(caught.value)
    assert "the tokenizer folder is empty" in str(caught.value)
    log = Path(caught.value.hint.rpartition(": ")[2])
    assert "broken" in log.read_text(encoding="utf-8")
    assert not triton.running()
    assert not processes.marked(triton.command(serving.launch(repository)).env[processes.MARKER])


def test_a_taken_port_is_found_before_starting_with_its_holder(serving: Serving, repository: Path) -> None:
    launch = serving.launch(repository)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", launch.ports.grpc))
        taken.listen()
        with pytest.raises(ServerError, match=f"port {launch.ports.grpc} is taken by process {os.getpid()}") as caught:
            serving.triton().start(launch, lambda _: None)
    assert "--grpc-port" in caught.value.hint


def test_a_second_server_on_one_repository_is_refused(serving: Serving, repository: Path) -> None:
    with serving.server(repository) as running:
        with pytest.raises(ServerError, match=f"runs on this repository already .process {running.pid}"):
            serving.triton().start(serving.launch(repository), lambda _: None)
        assert running in serving.triton().running()


def test_a_missing_model_is_named_before_the_start(serving: Serving, repository: Path) -> None:
    with pytest.raises(ServerError, match="no model 'absent'"):
        serving.triton().start(serving.launch(repository, "identity", "absent"), lambda _: None)


def test_an_interrupted_start_leaves_nothing(serving: Serving, repository: Path) -> None:
    tiny_models.lay(repository, "slow", tiny_models.SLOW)
    triton = serving.triton()
    launch = serving.launch(repository)
    marker = triton.command(launch).env[processes.MARKER]

    def interrupt(line: str) -> None:
        if "slow begins" in line:
            assert processes.marked(marker)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        triton.start(launch, interrupt)
    assert not processes.marked(marker)
    assert not triton.running()


def test_a_foreground_server_dies_with_a_forge_that_is_killed(serving: Serving, repository: Path) -> None:
    with other_forge(serving, repository, "foreground") as forge:
        assert forge.stdout is not None
        pid = int(forge.stdout.readline())
        (running,) = serving.triton().running()
        assert running.pid == pid
        forge.send_signal(signal.SIGKILL)
    assert gone(running)
    assert not serving.triton().running()


def test_who_notices_late_leaves_a_successor_alone(serving: Serving, repository: Path) -> None:
    triton = serving.triton()
    with other_forge(serving, repository, "stay") as late:
        assert late.stdout is not None
        late.stdout.readline()
        (before,) = triton.running()
        theirs = processes.offspring((late.pid,))  # its guardian among them
        triton.stop(before)
        now = triton.start(serving.launch(repository, detach=True), lambda _: None)
        try:
            triton.stop(before)
            late.kill()
            assert soon(lambda: not any(map(processes.started, theirs)))
            assert triton.running() == (now,)
        finally:
            triton.stop(now)


def test_a_new_server_knows_nothing_of_the_one_before(serving: Serving, repository: Path) -> None:
    triton = serving.triton()
    before = triton.start(serving.launch(repository), lambda _: None)
    triton.stop(before)
    triton.note(before, {"identity": Health(restarts=3, given_up=True)})  # as whoever is killed leaves it behind
    running = triton.start(serving.launch(repository), lambda _: None)
    try:
        assert not triton.health(running)
    finally:
        triton.stop(running)


def test_a_detached_server_outlives_forge_and_is_stopped_by_another(serving: Serving, repository: Path) -> None:
    with other_forge(serving, repository, "detach") as forge:
        assert forge.stdout is not None
        pid = int(forge.stdout.readline())
    triton = serving.triton()
    (running,) = triton.running()
    assert (running.pid, running.repository) == (pid, str(repository))
    triton.stop(running)
    assert left_of(running) == ([], [])


def test_what_a_killed_server_left_behind_is_cleared_away(serving: Serving, repository: Path) -> None:
    with other_forge(serving, repository, "detach") as forge:
        assert forge.stdout is not None
        forge.stdout.readline()
    triton = serving.triton()
    (running,) = triton.running()
    os.kill(running.pid, signal.SIGKILL)
    while triton.alive(running):
        time.sleep(0.02)
    assert triton.running() == ()
    assert left_of(running) == ([], [])


def test_the_command_is_what_runs(serving: Serving, repository: Path) -> None:
    triton = serving.triton()
    launch = serving.launch(repository)
    command = triton.command(launch)
    assert command == triton.command(launch)
    assert "--model-control-mode=explicit" in command.argv
    assert "--load-model=identity" in command.argv
    assert {f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")} <= set(command.argv)
    running = triton.start(launch, lambda _: None)
    try:
        words = Path(f"/proc/{running.pid}/cmdline").read_text(encoding="utf-8").rstrip("\0").split("\0")
        hidden = [word.replace(unlisted.SECRET, unlisted.CLOSED) for word in command.argv]
        assert words[1:] == [f"--id={running.nonce}", *hidden[hidden.index(words[0]) + 1 :]]
    finally:
        triton.stop(running)


def test_a_server_without_its_execute_bit_is_a_host_error(serving: Serving, repository: Path, tmp_path: Path) -> None:
    copied = tmp_path / "backends"
    shutil.copytree(serving.backends, copied)
    (copied / "python" / "triton_python_backend_stub").chmod(0o644)
    launch = serving.launch(repository)
    with pytest.raises(HostError, match="not executable"):
        serving.triton().start(replace(launch, backends=copied), lambda _: None)


@pytest.mark.parametrize(("times", "comes_up"), [(1, True), (2, False)])
def test_a_triton_that_loses_its_lock_is_started_again(
    serving: Serving, repository: Path, tmp_path: Path, times: int, comes_up: bool
) -> None:
    layout = read_layout(serving.environment)
    installed = tmp_path / "tritonserver"
    (installed / "bin").mkdir(parents=True)
    (installed / "backends" / "python").mkdir(parents=True)
    for file in layout.python_backend():
        shutil.copy(file, installed / "backends" / "python" / file.name)
    program = installed / "bin" / "tritonserver"
    program.write_text(
        f"#!/bin/sh\nn=$(cat {tmp_path}/n 2>/dev/null || echo 0)\necho $((n + 1)) > {tmp_path}/n\n"
        f"[ $n -lt {times} ] && echo 'I1128 10:00:00.000001 1 a.cc:1] \"begun\"' && echo 'terminate called after throwing an "
        "instance of boost::interprocess::lock_exception' && exit 134\n"
        f'exec {layout.server} "$@"\n'
    )
    program.chmod(0o755)
    path = f"{serving.environment / 'bin'}:{os.environ['PATH']}"
    servers = Servers(serving.home, {**os.environ, "PATH": path, "LD_LIBRARY_PATH": layout.library_path()}, patience=120.0)
    launch = replace(serving.launch(repository), environment=None, backends=None, triton=str(installed))
    said: list[str] = []
    if comes_up:
        servers.stop(servers.start(launch, said.append))
    else:
        with pytest.raises(ServerError, match="terminate called") as caught:
            servers.start(launch, said.append)
        assert caught.value.hint.startswith("Triton lost a lock of its own")
    assert sum("started once more" in line for line in said) == 1
    assert (tmp_path / "n").read_text().strip() == "2"
    assert servers.running() == ()


def test_a_triton_installed_here_serves_with_its_own_backends(serving: Serving, repository: Path, tmp_path: Path) -> None:
    layout = read_layout(serving.environment)
    installed = tmp_path / "tritonserver"
    (installed / "bin").mkdir(parents=True)
    (installed / "backends" / "python").mkdir(parents=True)
    shutil.copy(layout.server, installed / "bin" / "tritonserver")
    for file in layout.python_backend():
        shutil.copy(file, installed / "backends" / "python" / file.name)
    bare = tmp_path / "venv"  # forge's own, activated: Triton's stubs would look for numpy in it
    venv.create(bare, with_pip=False)
    path = f"{bare / 'bin'}:{serving.environment / 'bin'}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(bare), "LD_LIBRARY_PATH": layout.library_path()}
    servers = Servers(serving.home, environ, patience=120.0)
    launch = replace(serving.launch(repository), environment=None, backends=None, triton=str(installed))
    running = servers.start(launch, lambda _: None)
    try:
        assert Path(f"/proc/{running.pid}/exe").resolve() == installed / "bin" / "tritonserver"
    finally:
        servers.stop(running)
    assert left_of(running) == ([], [])


PARENT = """
import os, time
if not os.fork():
    open("/proc/self/comm", "w").write("triton_python_backend_stub")
    os._exit(9)
print(flush=True)
time.sleep(600)
"""
"""Looks no more at a child that has ended than Triton at a stub that was killed at the wrong instant of its start."""


def test_a_start_whose_models_process_is_killed_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in a campaign of kills: Triton waited for it for ever, and forge for ten minutes."""
    monkeypatch.setattr(ready, "_DEAD", 0.5)
    (tmp_path / "log").write_text("")
    with subprocess.Popen((sys.executable, "-c", PARENT), stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        parent.stdout.readline()
        began, log = processes.started(parent.pid) or 0.0, str(tmp_path / "log")
        running = Running(str(tmp_path), parent.pid, began, free_ports(), ("heavy",), log, "no-such-region")
        with pytest.raises(ServerError, match="missing: heavy; a process of it was killed while it loaded a model"):
            ready.await_models(TritonProcess({}), running, 600.0, lambda _: None)
        parent.kill()


@pytest.mark.parametrize("hangs", [True, False])
def test_a_start_that_hangs_in_its_fault_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, hangs: bool) -> None:
    """One whose log only has such a line is waited for."""
    monkeypatch.setattr(ready, "_DEAD", 0.2)
    (tmp_path / "log").write_text("double free or corruption (out)\nSignal (6) received.\n")
    with in_fault(hangs=hangs) as pid:
        ticks = processes.started(pid) or 0.0
        running = Running(str(tmp_path), pid, ticks, free_ports(), ("heavy",), str(tmp_path / "log"), "no-such-region")
        said = "signal 6, SIGABRT, and it hung instead of ending" if hangs else "4 s were not enough"
        with pytest.raises(ServerError, match=f"missing: heavy; {said}"):
            ready.await_models(TritonProcess(os.environ), running, 600.0 if hangs else 4.0, lambda _: None)
