"""Two servers never share a port: one start of two wins, and a stranger at a server's address is not believed."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

import tiny_models
from fake_wiring import World
from forge.errors import ServerError
from forge.machine import processes
from forge.schema.values import Ports
from forge.serve import model_control
from forge.serve.port_holders import claimed, require_own
from forge.serve.ready import asked
from forge.serve.server import Servers
from forge.serve.server_types import Launch, Running
from forge.serve.state import States
from lying_server import Turn, lying
from patience import PATIENCE, free_ports
from shipped import SMOLLM2
from triton_fixture import Serving

pytestmark = [pytest.mark.slow, pytest.mark.network]

START = """
import os, sys
from pathlib import Path
from forge.serve.server import Servers
from forge.errors import ForgeError
from forge.serve.server_types import Launch; from forge.schema.values import Ports
home, repository, environment, backends, *ports = sys.argv[1:]
launch = Launch(Path(repository), ("identity",), Path(environment), Path(backends), Ports(*map(int, ports)), detach=True)
sys.stdin.readline()
try:
    print("ready", Servers(Path(home), os.environ).start(launch, lambda line: None).pid)
except ForgeError as error:
    print("refused", error)
"""


@pytest.fixture
def launch(serving: Serving, tmp_path: Path) -> Launch:
    tiny_models.lay(tmp_path / "repository", "identity", tiny_models.IDENTITY)
    return serving.launch(tmp_path / "repository", detach=True)


@contextmanager
def stranger(port: int) -> Generator[None]:
    """Another program that answers every request with 200, as a Triton would that is ready."""

    class Yes(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"name": "triton"}')

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Yes) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("go_on", [Turn.never_end, Turn.drip])
def test_a_strangers_answer_ends_in_time_and_memory(go_on: Callable[[Turn], None]) -> None:
    def answer(turn: Turn) -> None:
        turn.say(200, content_length=None)
        go_on(turn)

    with lying(answer) as liar:
        status, said = asked(f"127.0.0.1:{liar.port}", "/v2", 1.0)
        assert status == 200
        assert 0 < len(said) < 65 << 20
        assert go_on is not Turn.drip or len(said) < 400


def test_of_two_starts_at_once_in_two_homes_one_wins(serving: Serving, tmp_path: Path) -> None:
    ports = [str(port) for port in processes.spare(3)]
    forges: list[subprocess.Popen[str]] = []
    for name in ("one", "two"):
        tiny_models.lay(tmp_path / name / "repository", "identity", tiny_models.IDENTITY)
        argv = [sys.executable, "-c", START, str(tmp_path / name), str(tmp_path / name / "repository")]
        argv += [str(serving.environment), str(serving.backends), *ports]
        forges.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    try:
        for forge in forges:
            assert forge.stdin is not None
            forge.stdin.write("go\n")
            forge.stdin.flush()
        said = [forge.communicate(timeout=PATIENCE)[0] for forge in forges]
        assert sorted(each.split()[0] for each in said) == ["ready", "refused"], said
        refused = next(each for each in said if each.startswith("refused"))
        assert f"port {ports[0]}" in refused, said
        assert "process" in refused, said
        (winner,) = [each.split()[1] for each in said if each.startswith("ready")]
        assert processes.listener(int(ports[0])) == int(winner)
    finally:
        for name in ("one", "two"):
            servers = Servers(tmp_path / name, os.environ)
            for running in servers.running():
                servers.stop(running)


def test_a_claim_names_who_holds_it_and_ends_with_it() -> None:
    http_port, grpc_port, metrics_port = processes.spare(3)
    ports = Ports(http_port, grpc_port, metrics_port)
    with claimed(ports):
        other = replace(ports, http=ports.http + 1, grpc=ports.http)
        with pytest.raises(ServerError, match=f"process {os.getpid()}.*at port {ports.http}") as caught, claimed(other):
            pass
        assert "--grpc-port" in caught.value.hint
    with claimed(ports):
        pass


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_a_port_lost_while_it_starts_is_an_error(serving: Serving, launch: Launch, name: str) -> None:
    taken: list[socket.socket] = []
    port = getattr(launch.ports, name)

    def take(line: str) -> None:
        if not taken:
            taken.append(socket.create_server(("127.0.0.1", port)))

    triton = serving.triton()
    try:
        with pytest.raises(ServerError, match=f"{port}.*process {os.getpid()}"):
            triton.start(launch, take)
        assert triton.running() == ()
    finally:
        for each in taken:
            each.close()


def test_a_stranger_that_says_ready_is_not_believed(serving: Serving, launch: Launch) -> None:
    """It takes the port after forge has looked, and answers that the model is ready while the server loads."""
    tiny_models.lay(launch.repository, "slow", tiny_models.SLOW)
    slow = replace(launch, models=("identity", "slow"))
    with pytest.raises(ServerError, match=f"{launch.ports.http}.*process {os.getpid()}"):
        begin_beside_a_stranger(serving.triton(), slow)
    assert serving.triton().running() == ()


def begin_beside_a_stranger(triton: Servers, launch: Launch) -> None:
    with ExitStack() as stack:
        held: list[int] = []

        def take(line: str) -> None:
            if not held:
                stack.enter_context(stranger(launch.ports.http))
                held.append(launch.ports.http)

        triton.start(launch, take)


def test_models_are_not_loaded_into_a_stranger(serving: Serving, launch: Launch) -> None:
    """A server that lives and has lost its port: the secret does not go to whoever has it now."""
    with serving.server(launch.repository) as running:
        (port,) = processes.spare(1)
        moved = replace(running, ports=replace(running.ports, http=port))
        States(serving.home / "servers").keep(moved)
        with stranger(port), pytest.raises(ServerError, match=f"http port {port}.*process {os.getpid()}"):
            serving.triton().load(moved, launch, ("identity",), print)
        States(serving.home / "servers").keep(running)
        require_own(running)


def test_a_server_that_does_not_answer_yet_is_no_stranger(tmp_path: Path) -> None:
    """As it is while it starts: the forge that was waiting for it was killed."""
    silent = Running(str(tmp_path), os.getpid(), 0.0, free_ports(), (), "", "forge-serve-silent", nonce="forge-silent")
    with pytest.raises(ServerError, match="does not answer at its http port") as caught:
        require_own(silent)
    assert "forge stop" in caught.value.hint


def test_a_load_does_not_wait_for_a_dead_server(tmp_path: Path) -> None:
    """A stub that Triton was just starting holds its end of the connection: the other end is never told that Triton died."""
    with subprocess.Popen(["sleep", "300"]) as triton:
        began = processes.started(triton.pid) or 0.0
        triton.kill()
    ports = free_ports()
    dead = Running(str(tmp_path), triton.pid, began, ports, (), str(tmp_path / "log"), "forge-serve-dead")
    with socket.create_server(("127.0.0.1", ports.http)), pytest.raises(ServerError, match="the server ended while it loaded"):
        model_control.load(dead, "tiny", lambda: False, PATIENCE)


def test_the_id_tells_containers_apart(serving: Serving, launch: Launch) -> None:
    with serving.server(launch.repository) as running:
        assert running.nonce.startswith("forge-")
        require_own(replace(running, container="forge-serve-x"))
        with pytest.raises(ServerError, match=f"it calls itself '{running.nonce}'"):
            require_own(replace(running, container="forge-serve-x", nonce="forge-other"))


def at(ports: Ports, name: str, port: int) -> Ports:
    return replace(ports, **{name: port})


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_each_port_of_a_container_is_its_own(serving: Serving, launch: Launch, tmp_path: Path, name: str) -> None:
    """Of a container's ports the kernel shows nothing: another Triton at one of them is told by what it says."""
    tiny_models.lay(tmp_path / "other", "another", tiny_models.IDENTITY)
    with serving.server(launch.repository) as running, serving.server(tmp_path / "other") as other:
        contained = replace(running, container="forge-serve-x")
        require_own(contained)
        crossed = at(running.ports, name, getattr(other.ports, name))
        with pytest.raises(ServerError, match=f"{name} port {getattr(other.ports, name)} is answered by another"):
            require_own(replace(contained, ports=crossed))
        (port,) = processes.spare(1)
        with stranger(port), pytest.raises(ServerError, match=f"{name} port {port} is answered by another"):
            require_own(replace(contained, ports=at(running.ports, name, port)))


CLAIM = """
import os, sys
from forge.serve.port_holders import claimed
from forge.errors import ServerError
from forge.schema.values import Ports
user, *ports = map(int, sys.argv[1:])
os.setgroups([])
os.setgid(user)
os.setuid(user)
try:
    with claimed(Ports(*ports)):
        print("claimed")
except ServerError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_claim_is_seen() -> None:
    http_port, grpc_port, metrics_port = processes.spare(3)

    def claim(user: int) -> str:
        words = [sys.executable, "-c", CLAIM, *map(str, (user, http_port, grpc_port, metrics_port))]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert claim(65534) == "claimed\n"
    with claimed(Ports(http_port, grpc_port, metrics_port)):
        assert f"another forge (process {os.getpid()}) is starting a server at port {http_port}" in claim(65534)


def test_a_listed_server_says_that_a_stranger_has_its_port(serving: Serving, launch: Launch) -> None:
    with serving.server(launch.repository) as running:
        assert next(each for each in serving.triton().running() if each.pid == running.pid).stranger == ""
        (port,) = processes.spare(1)
        States(serving.home / "servers").keep(replace(running, ports=replace(running.ports, http=port)))
        with stranger(port):
            found = next(each for each in serving.triton().running() if each.pid == running.pid)
        States(serving.home / "servers").keep(running)
        assert f"http port {port} is answered by another program" in found.stranger
        assert f"process {os.getpid()}" in found.stranger


def test_a_model_is_not_asked_at_a_strangers_port(world: World, tmp_path: Path) -> None:
    shop = world.shop(tmp_path / "home")
    built = shop.build([SMOLLM2], repository=tmp_path / "repository")
    running = shop.serve(built.repository)
    assert shop.target("smollm2-135m-instruct").address == "127.0.0.1:8001"
    world.server.alive[:] = [replace(running, stranger="the grpc port 8001 is answered by another program")]
    with pytest.raises(ServerError, match="answered by another program"):
        shop.target("smollm2-135m-instruct")
    for ask in (shop.verify, shop.bench):
        with pytest.raises(ServerError, match="answered by another program"):
            ask("smollm2-135m-instruct")
