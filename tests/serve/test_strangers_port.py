"""Somebody else has the port of one of forge's servers: every command says so, tells the stranger nothing, and leaves it be."""

import os
import shutil
import signal
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from forge.api.forge import Forge
from forge.cli import main
from forge.machine import processes
from forge.schema.values import Ports
from forge.serve.server_types import Running
from forge.serve.state import States, key_file
from patience import PATIENCE, free_ports, soon, spare
from tiny_served import Tiny

pytestmark = [pytest.mark.slow, pytest.mark.network]

PROMPT = "a-prompt-that-nobody-else-may-read"
YES = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\nConnection: close\r\n\r\n{"name": "triton"}'


@dataclass
class Stranger:
    """A program at a server's ports that says yes to everything, and keeps whatever it was sent."""

    heard: bytearray = field(default_factory=bytearray)

    def listen(self, door: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self.answer, args=(door.accept()[0],), daemon=True).start()

    def answer(self, guest: socket.socket) -> None:
        with guest, suppress(OSError):
            guest.settimeout(PATIENCE)
            while said := guest.recv(1 << 16):
                self.heard += said
                guest.sendall(YES)


@contextmanager
def stranger(ports: Ports) -> Generator[Stranger]:
    """One at the HTTP and the gRPC port; afterwards it is still there, whatever was done to the server."""
    found = Stranger()
    with ExitStack() as stack:
        for port in (ports.http, ports.grpc):
            door = stack.enter_context(socket.create_server(("127.0.0.1", port)))
            stack.callback(door.shutdown, socket.SHUT_RDWR)
            threading.Thread(target=found.listen, args=(door,), daemon=True).start()
        yield found
        for port in (ports.http, ports.grpc):
            assert processes.listener(port) == os.getpid()


@pytest.fixture(autouse=True)
def as_its_user(shop: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_HOME", str(shop.home))


@pytest.fixture(scope="module")
def repository(shop: Forge, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop.build([tiny.recipe], repository=tmp_path_factory.mktemp("strangers") / "repository").repository


COMMANDS = ("status", "status --no-ask", "generate", "reload", "stop", "remove")
ASKED_OF_A_LIVING = {"status": 9, "status --no-ask": 9, "generate": 9, "reload": 9, "remove": 9}


def told(command: str, repository: Path) -> Result:
    verb, *options = command.split()
    words = {"generate": ["tiny", PROMPT], "remove": ["tiny"]}.get(verb, [])
    where = [] if verb == "status" else ["--repository", str(repository)]
    return CliRunner().invoke(main, [verb, *words, *options, *where])


# -- a server that lives, and has lost its ports


@pytest.fixture(scope="module")
def living(shop: Forge, repository: Path) -> Iterator[Running]:
    running = shop.serve(repository, free_ports(), restart=False)
    yield running
    shop.stop(running)


@pytest.fixture
def moved(shop: Forge, living: Running) -> Iterator[Running]:
    with elsewhere(shop, living) as lost:
        yield lost


@contextmanager
def elsewhere(shop: Forge, running: Running) -> Generator[Running]:
    """The same server, as if its ports were others: those of a stranger."""
    http, grpc = spare(2)
    states = States(shop.home / "servers")
    lost = replace(running, ports=replace(running.ports, http=http, grpc=grpc))
    states.keep(lost)
    yield lost
    if processes.marked(running.shared_memory):
        states.keep(running)


@pytest.mark.parametrize("command", ASKED_OF_A_LIVING)
def test_a_stranger_at_a_servers_ports_is_named_told_nothing(moved: Running, repository: Path, command: str) -> None:
    with stranger(moved.ports) as other:
        said = told(command, repository)
    assert said.exit_code == ASKED_OF_A_LIVING[command], said.output
    assert f"port {moved.ports.http} is answered by another program and not by the server on this repository" in said.output
    assert f"process {os.getpid()}" in said.output
    assert_silent(other, moved)


def assert_silent(other: Stranger, running: Running, secret: bytes = b"") -> None:
    """Neither the secret nor what a person asked has come to it."""
    secret = secret or key_file(running).read_bytes()
    assert len(secret) > 20
    assert secret not in other.heard
    assert PROMPT.encode() not in other.heard


# -- a server that is dead


@dataclass(frozen=True)
class Remains:
    """What a server that was killed leaves: its ports, its secret, and its state files, to be laid out again."""

    running: Running
    secret: bytes
    kept: Path
    folder: Path

    def lay(self) -> None:
        for file in self.kept.iterdir():  # whole at once: whoever clears the dead away may look at any moment
            whole = self.kept.with_name(f"whole-{file.name}")
            shutil.copy2(file, whole)
            whole.replace(self.folder / file.name)


@pytest.fixture(scope="module")
def dead(shop: Forge, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Remains:
    place = shutil.copytree(repository, tmp_path_factory.mktemp("dead") / "repository", symlinks=True)
    running = shop.serve(place, free_ports(), detach=True, restart=False)
    folder, kept = shop.home / "servers", tmp_path_factory.mktemp("kept")
    for file in (States(folder).file(place), key_file(running)):
        shutil.copy2(file, kept / file.name)
    for pid in processes.marked(running.shared_memory):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert soon(lambda: not processes.marked(running.shared_memory))
    return Remains(running, key_file(running).read_bytes(), kept, folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stranger_at_a_dead_servers_ports_is_told_nothing(dead: Remains, command: str) -> None:
    dead.lay()
    with stranger(dead.running.ports) as other:
        said = told(command, Path(dead.running.repository))
    assert other.heard == b""
    if command in ("generate", "reload", "stop"):
        assert said.exit_code == 9, said.output
        assert "no server" in said.output
    assert str(dead.running.ports.http) not in said.output or "process" in said.output
    assert not States(dead.folder).file(Path(dead.running.repository)).exists()


# -- the end of one that lives


def test_stop_ends_the_server_and_leaves_the_stranger(shop: Forge, repository: Path, tmp_path: Path) -> None:
    place = shutil.copytree(repository, tmp_path / "repository", symlinks=True)
    running = shop.serve(place, free_ports(), restart=False)
    secret = key_file(running).read_bytes()
    with elsewhere(shop, running) as moved, stranger(moved.ports) as other:
        said = told("stop", place)
    assert said.exit_code == 0, said.output
    assert processes.marked(moved.shared_memory) == ()
    assert_silent(other, moved, secret)
