"""Triton in a container of a real Docker engine: started, watched, stopped, and ended with a forge that is killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace

import tiny_models
from docker_fixture import environ, load
from forge.errors import HostError, ServerError
from forge.machine import processes
from forge.machine.docker.daemon import Daemon
from forge.schema.values import Ports
from forge.serve.container import TritonContainer
from forge.serve.restart import Restart
from forge.serve.server import Servers
from forge.serve.server_types import Launch, RepositoryFolders
from forge.serve.state import States
from own_engine import Engine, bridge
from patience import PATIENCE, free_ports, soon
from standin.tree import Image

pytestmark = [pytest.mark.slow, pytest.mark.network]

FOREGROUND = """
import json, os, sys, time
from pathlib import Path
from forge.serve.server import Servers
from forge.serve.server_types import Launch; from forge.schema.values import Ports
address, home, repository, image, detach, *ports = sys.argv[1:]
launch = Launch(Path(repository), ("identity",), ports=Ports(*map(int, ports)), detach=detach == "detach", image=image)
running = Servers(Path(home), {"DOCKER_HOST": address, "PATH": os.environ["PATH"]}).start(launch, lambda line: None)
print(running.container, flush=True)
if detach != "detach":
    time.sleep(600)
"""
WEIGHTS = """
import pathlib
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.text = pathlib.Path("/forge/repository/_assets/tiny/weights").read_bytes()
        try:
            pathlib.Path("/forge/repository/mine").write_bytes(b"")
        except OSError as error:
            self.text += f" {error.strerror}".encode()

    def execute(self, requests):
        words = np.array([[self.text]], dtype=np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("text_output", words)]) for _ in requests]
"""

VARIABLE = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        asked = [pb_utils.get_input_tensor_by_name(one, "text_input").as_numpy().reshape(-1)[0] for one in requests]
        said = [np.array([[os.environ.get(name.decode(), "").encode()]], dtype=np.object_) for name in asked]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("text_output", word)]) for word in said]
"""


class Listed(Struct, rename="pascal"):
    names: list[str]


class Output(Struct):
    data: list[str]


class Answer(Struct):
    outputs: list[Output]


@pytest.fixture
def servers(engine: str, standin: Image, tmp_path: Path) -> Servers:
    return Servers(tmp_path / "home", environ(engine), patience=120.0)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model that works."""
    tiny_models.lay(tmp_path / "repository", "identity", tiny_models.IDENTITY)
    return tmp_path / "repository"


def launch_of(repository: Path, image: Image, *, detach: bool = False) -> Launch:
    models = tuple(sorted(config.parent.name for config in repository.glob("*/config.pbtxt")))
    return Launch(repository, models, ports=free_ports(), detach=detach, image=image.reference)


def containers(address: str) -> set[str]:
    """The servers' containers that exist, running or not."""
    with Daemon(environ(address)).connected() as api:
        found = msgspec.convert(api.containers(all=True, filters={"name": "forge-serve-"}), list[Listed])
    return {one.names[0].lstrip("/") for one in found}


def ask(ports: Ports, model: str, text: str) -> str:
    given = {"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    body = msgspec.json.encode({"inputs": [given]})
    with urllib.request.urlopen(
        f"http://{ports.host}:{ports.http}/v2/models/{model}/infer", data=body, timeout=PATIENCE
    ) as answer:
        return msgspec.json.decode(answer.read(), type=Answer).outputs[0].data[0]


def gone(address: str, name: str) -> bool:
    return soon(lambda: name not in containers(address), pause=0.1)


@contextmanager
def other_forge(engine: str, home: Path, launch: Launch) -> Generator["subprocess.Popen[str]"]:
    """Another process that starts a server and, unless detached, stays; its first line is the container's name."""
    ports = (launch.ports.http, launch.ports.grpc, launch.ports.metrics)
    words = [engine, str(home), str(launch.repository), launch.image, "detach" if launch.detach else "stay", *map(str, ports)]
    with subprocess.Popen([sys.executable, "-c", FOREGROUND, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_container_serves_the_repository_and_stop_leaves_nothing(
    engine: str, standin: Image, servers: Servers, repository: Path
) -> None:
    tiny_models.lay(repository, "weights", WEIGHTS)
    held = repository.parent / "store" / "weights"
    held.parent.mkdir()
    held.write_text("from the store")
    (repository / "_assets" / "tiny").mkdir(parents=True)
    os.link(held, repository / "_assets" / "tiny" / "weights")
    lines: list[str] = []
    running = servers.start(launch_of(repository, standin), lines.append)
    try:
        assert running in servers.running()
        assert running.container in containers(engine)
        assert "Triton Inference Server" in "\n".join(lines[:5]), "what the entrypoint says is in the log too"
        assert any("Started GRPCInferenceService" in line for line in lines)
        assert Path(running.log).read_text().splitlines()[: len(lines)] == lines
        assert ask(running.ports, "identity", "hello") == "hello"
        assert ask(running.ports, "weights", "?") == "from the store Read-only file system"
    finally:
        servers.stop(running)
    assert running.container not in containers(engine)
    assert servers.running() == ()
    assert not servers.alive(running)
    assert list(Path(running.log).parent.glob("*.json")) == []


def test_several_repositories_stand_where_their_configs_say(standin: Image, servers: Servers, repository: Path) -> None:
    second = repository.parent / "second"
    tiny_models.lay(second, "weights", WEIGHTS)
    weights = second / "_assets" / "tiny"
    weights.mkdir(parents=True)
    (weights / "weights").write_text("first")
    launch = replace(launch_of(repository, standin), models=("identity", "weights"))
    launch = replace(
        launch, several=(RepositoryFolders(repository, ("identity",)), RepositoryFolders(second, ("weights", "_assets/tiny")))
    )
    running = servers.start(launch, lambda _: None)
    try:
        assert ask(running.ports, "identity", "hello") == "hello"
        assert ask(running.ports, "weights", "?") == "first Read-only file system"
        # As a publish does it: whole folders in the place of those before.
        for folder in (weights, second / "weights"):
            folder.rename(second.parent / f"old-{folder.name}")
        weights.mkdir()
        (weights / "weights").write_text("second")
        tiny_models.lay(second, "weights", WEIGHTS)
        tiny_models.lay(second, "more", WEIGHTS)
        parts = (launch.several[0], RepositoryFolders(second, ("weights", "more", "_assets/tiny")))
        running = servers.load(running, replace(launch, several=parts), ["weights", "more"], print)
        assert ask(running.ports, "weights", "?") == ask(running.ports, "more", "?") == "second Read-only file system"
        assert running.models == ("identity", "weights", "more")
    finally:
        servers.stop(running)
    assert not list(Path(running.log).parent.glob("*.view"))


def test_a_broken_model_is_named_with_its_reason_nothing_stays(
    engine: str, standin: Image, servers: Servers, repository: Path
) -> None:
    tiny_models.lay(repository, "broken", tiny_models.BROKEN)
    with pytest.raises(ServerError) as caught:
        servers.start(launch_of(repository, standin), lambda _: None)
    assert "model 'broken' did not load" in str(caught.value)
    assert "the tokenizer folder is empty" in str(caught.value)
    log = Path(caught.value.hint.rpartition(": ")[2])
    assert "the tokenizer folder is empty" in log.read_text()
    assert servers.running() == ()
    argv = servers.command(launch_of(repository, standin)).argv
    assert argv[argv.index("--name") + 1] not in containers(engine)


def test_an_exit_code_is_waited_for_when_told_late(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    told = [(True, 0), (True, 0), (False, 127)]

    def look(*_: object) -> SimpleNamespace:
        running, code = told.pop(0)
        return SimpleNamespace(running=running, exit_code=code, oom_killed=False)

    monkeypatch.setattr("forge.serve.container._look", look)
    assert TritonContainer(environ(engine)).ended(cast("Any", SimpleNamespace(container="gone"))) == "exit code 127"


def test_a_server_that_ends_early_is_told_with_exit_code(servers: Servers, repository: Path, plain: str) -> None:
    launch = Launch(repository, ("identity",), ports=free_ports(), image=plain)
    with pytest.raises(ServerError, match=r"missing: identity; exit code 127.*\n.*\n.*tritonserver: not found"):
        servers.start(launch, lambda _: None)


@pytest.mark.parametrize("apart", [{"world": 2}, {"engines": ("identity", "second")}])
def test_engines_in_parts_are_started_by_mpi_as_nvidia_does(
    standin: Image, servers: Servers, repository: Path, apart: dict[str, Any]
) -> None:
    tiny_models.lay(repository, "second", VARIABLE)
    running = servers.start(replace(launch_of(repository, standin), **apart), lambda _: None)
    try:
        assert ask(running.ports, "second", "TRTLLM_ORCHESTRATOR") == ("1" if "engines" in apart else "")
    finally:
        servers.stop(running)


def test_a_taken_port_is_found_before_the_start(engine: str, standin: Image, servers: Servers, repository: Path) -> None:
    launch = launch_of(repository, standin)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", launch.ports.grpc))
        taken.listen()
        with pytest.raises(ServerError, match=f"port {launch.ports.grpc} is taken by process {os.getpid()}"):
            servers.start(launch, lambda _: None)


@pytest.mark.parametrize("of_host", [False, True], ids=["published", "host network"])
def test_a_port_lost_between_look_and_start_is_named(
    engine: str, standin: Image, repository: Path, tmp_path: Path, of_host: bool
) -> None:
    launch = replace(launch_of(repository, standin), host_network=of_host)
    servers = Servers(tmp_path / "home", environ(engine), patience=PATIENCE)

    def take() -> socket.socket:
        """The port, as soon as forge has looked whether it is free: a moment later it writes a state file."""
        assert soon(lambda: any((tmp_path / "home" / "servers").glob("*.json")), pause=0.002)
        return socket.create_server(("127.0.0.1", launch.ports.grpc))

    with ThreadPoolExecutor(1) as thread:
        taking = thread.submit(take)
        with pytest.raises(ServerError, match=f"port {launch.ports.grpc} is taken by process {os.getpid()}"):
            servers.start(launch, lambda _: None)
        taking.result().close()
    assert servers.running() == ()


def test_an_image_that_is_gone_is_named(servers: Servers, repository: Path, standin: Image) -> None:
    with pytest.raises(HostError, match="no longer holds the image") as caught:
        servers.start(replace(launch_of(repository, standin), image="forge/gone:1"), lambda _: None)
    assert caught.value.where == "forge/gone:1"


def test_an_interrupted_start_leaves_nothing(engine: str, standin: Image, servers: Servers, repository: Path) -> None:
    tiny_models.lay(repository, "slow", tiny_models.SLOW)

    def interrupt(line: str) -> None:
        if "slow begins" in line:
            raise KeyboardInterrupt

    before = containers(engine)
    with pytest.raises(KeyboardInterrupt):
        servers.start(launch_of(repository, standin), interrupt)
    assert containers(engine) <= before
    assert servers.running() == ()


def test_a_foreground_server_dies_with_a_forge_that_is_killed(
    engine: str, standin: Image, servers: Servers, repository: Path, tmp_path: Path
) -> None:
    with other_forge(engine, tmp_path / "home", launch_of(repository, standin)) as forge:
        name = first_line(forge)
        (running,) = servers.running()
        assert running.container == name
        forge.send_signal(signal.SIGKILL)
    assert gone(engine, name)
    assert servers.running() == ()


def test_the_next_start_removes_what_killed_forge_and_guardian_left(
    engine: str, standin: Image, servers: Servers, repository: Path, tmp_path: Path
) -> None:
    with other_forge(engine, tmp_path / "home", launch_of(repository, standin)) as forge:
        name = first_line(forge)
        children = Path(f"/proc/{forge.pid}/task/{forge.pid}/children").read_text().split()
        for guardian in children:
            os.kill(int(guardian), signal.SIGKILL)
        forge.send_signal(signal.SIGKILL)
    assert children
    assert name in containers(engine)
    tiny_models.lay(tmp_path / "other", "identity", tiny_models.IDENTITY)
    other = servers.start(launch_of(tmp_path / "other", standin), lambda _: None)
    servers.stop(other)
    assert name not in containers(engine)
    assert servers.running() == ()


def test_a_detached_server_outlives_forge_logs_on_and_is_stoppable(
    engine: str, standin: Image, servers: Servers, repository: Path, tmp_path: Path
) -> None:
    with other_forge(engine, tmp_path / "home", launch_of(repository, standin, detach=True)) as forge:
        name = first_line(forge)
        assert forge.wait(PATIENCE) == 0
    (running,) = servers.running()
    assert (running.container, running.repository) == (name, str(repository))
    with pytest.raises(ServerError, match=f"runs on this repository already .container {name}"):
        servers.start(launch_of(repository, standin), lambda _: None)
    before = Path(running.log).stat().st_size
    assert ask(running.ports, "identity", "still here") == "still here"
    servers.stop(running)
    assert Path(running.log).stat().st_size > before
    assert name not in containers(engine)


def test_a_container_that_somebody_killed_is_cleared_away(
    engine: str, standin: Image, servers: Servers, repository: Path
) -> None:
    running = servers.start(launch_of(repository, standin, detach=True), lambda _: None)
    with Daemon(environ(engine)).connected() as api:
        api.kill(running.container)
    while servers.alive(running):
        time.sleep(0.02)
    assert servers.running() == ()
    assert running.container not in containers(engine)


def test_a_hung_container_is_started_again_a_stopped_one_not(
    engine: str, standin: Image, servers: Servers, repository: Path, tmp_path: Path
) -> None:
    launch = launch_of(repository, standin, detach=True)
    running = servers.start(launch, lambda _: None)
    mine = replace(running, vigil=os.getpid(), vigil_started=processes.started(os.getpid()) or 0.0)
    States(tmp_path / "home" / "servers").keep(mine)
    again = Restart(servers, lambda _, __: launch, time.time, lambda _: None, lambda _: None)
    try:
        with Daemon(environ(engine)).connected() as api:
            cast("Any", api).pause(running.container)
            assert servers.stance(running).stands, "it goes on as soon as somebody wants"
            cast("Any", api).unpause(running.container)
            assert (servers.stance(running).speaks, servers.stance(running).stands) == (True, False)
            servers.kill(running)
            assert soon(lambda: servers.current(running.shared_memory) is None, pause=0.02)
            assert [each.down for each in servers.running()] == ["its Triton died, and is being started again"]
            assert again.attempt(running.shared_memory, "it hung")
            (now,) = servers.running()
            assert ask(now.ports, "identity", "again") == "again"
            assert (now.container, [crash.why for crash in now.crashes]) == (running.container, ["it hung"])
            api.kill(running.container, signal="SIGTERM")
            assert soon(lambda: servers.current(running.shared_memory) is None, pause=0.02)
            assert not again.attempt(running.shared_memory)
    finally:
        servers.stop(running)
    assert running.container not in containers(engine)


def test_the_printed_command_serves_by_itself(engine: str, standin: Image, servers: Servers, repository: Path) -> None:
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command on this machine")
    launch = launch_of(repository, standin)
    argv = servers.command(launch).argv
    limit = argv.index("memlock=-1")
    argv = (*argv[: limit - 1], *argv[limit + 1 :])  # an engine that a test started may not raise it
    with subprocess.Popen(argv, env=environ(engine), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            assert any("Started Metrics Service" in line for line in process.stdout)
            assert ask(launch.ports, "identity", "typed") == "typed"
        finally:
            process.send_signal(signal.SIGINT)
    assert gone(engine, argv[argv.index("--name") + 1])


@pytest.fixture(scope="module")
def bridged(engine: str, standin_archive: Image) -> Generator[Engine]:
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("dockerd"):
        pytest.skip("only root, with ip and dockerd, can start an engine with a network of its own")
    # Not pytest's folder: a socket's path may have 107 characters at most.
    with bridge() as device, tempfile.TemporaryDirectory(prefix="forge-bridged-", ignore_cleanup_errors=True) as folder:
        own = Engine(Path(folder), device)
        own.start()
        try:
            load(own.address, standin_archive.archive)
            yield own
        finally:
            own.stop()


def test_published_ports_leave_the_inside_as_newer_models_expect_it(
    bridged: Engine, standin_archive: Image, repository: Path, tmp_path: Path
) -> None:
    (repository / "identity" / "1" / "lib.py").write_text('URL = "localhost:8001"\n')
    servers = Servers(tmp_path / "home", environ(bridged.address), patience=120.0)
    lines: list[str] = []
    running = servers.start(launch_of(repository, standin_archive), lines.append)
    try:
        assert not any("localhost:8001" in line for line in lines), "there it listens"
        assert "at 0.0.0.0:8001" in Path(running.log).read_text()
        assert ask(running.ports, "identity", "through") == "through"
    finally:
        servers.stop(running)
    assert containers(bridged.address) == set()


def test_a_daemon_that_goes_is_named_and_nothing_stays_behind(
    bridged: Engine, standin_archive: Image, repository: Path, tmp_path: Path
) -> None:
    servers = Servers(tmp_path / "home", environ(bridged.address), patience=120.0)
    tiny_models.lay(repository, "slow", tiny_models.SLOW)

    def interrupt(line: str) -> None:
        if "slow begins" in line:
            bridged.kill()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        servers.start(launch_of(repository, standin_archive), interrupt)
    with pytest.raises(HostError, match="no Docker daemon answers"):
        servers.start(launch_of(repository, standin_archive), lambda _: None)
    (running,) = servers.running()
    with pytest.raises(HostError, match="no Docker daemon answers"):
        servers.stop(running)
    bridged.start()
    servers.stop(running)
    assert servers.running() == ()
    assert containers(bridged.address) == set()
