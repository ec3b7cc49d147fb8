"""Clients that never finish their request, or never read the answer, over raw sockets against forge's own HTTP server."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

import pytest

from forge.machine import processes
from forge.serve.openai import service as real, web
from forge.serve.openai.access import Access
from forge.serve.openai.patience import Patience
from forge.serve.openai.service import Answered
from patience import PATIENCE

SHORT = Patience(head=1.0, body=1.5, unread=1.5, connections=6)
SAID = b'{"said": 1}'
EVENT = b"x" * 10_000
ASK = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"


@dataclass
class Service:
    """Answers at once; with ``endless`` by a stream that goes on until it is closed."""

    endless: bool = False
    largest: int = 100
    sent: int = 0
    closed: threading.Event = field(default_factory=threading.Event)

    async def models(self) -> bytes:
        return b"{}"

    async def model(self, name: str) -> bytes:
        return b"{}"

    async def health(self) -> bytes:
        return b"{}"

    async def chat(self, body: bytes) -> Answered:
        return Answered(SAID)

    async def complete(self, body: bytes) -> Answered:
        return Answered(events=self._events()) if self.endless else Answered(SAID)

    def metrics(self) -> bytes:
        return b""

    def refused(self, status: int, code: str | None) -> None:
        pass

    async def _events(self) -> AsyncGenerator[bytes]:
        try:
            while True:
                self.sent += 1
                yield EVENT
                await asyncio.sleep(0)
        finally:
            self.closed.set()


@contextmanager
def serving(service: Service) -> Generator[int]:
    """The port at which ``service`` is asked."""
    (port,) = processes.spare(1)
    door = web.Door(Access(local=True), service.models)
    made = web.server(web.application(cast("real.Service", service), SHORT, door), "127.0.0.1", port, SHORT)
    thread = threading.Thread(target=asyncio.run, args=(made.serve(),))
    thread.start()
    try:
        while not made.started:
            time.sleep(0.01)
        yield port
    finally:
        made.should_exit = True
        thread.join()


def talk(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def heard(one: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    held = bytearray()
    with suppress(ConnectionResetError):
        while part := one.recv(65536):
            held += part
    return bytes(held)


def answers(port: int) -> bool:
    with closing(talk(port)) as one:
        one.sendall(ASK.replace(b"host: a", b"host: a\r\nconnection: close"))
        return heard(one).endswith(b'{"said": 1}')


@pytest.mark.parametrize(
    "begun",
    [b"", b"POST /v1/compl", b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-le", ASK + b"POST /v1"],
    ids=["nothing", "line", "header", "second"],
)
def test_a_head_that_never_ends_is_given_up(begun: bytes) -> None:
    with serving(Service()) as port, closing(talk(port)) as one:
        one.sendall(begun)
        said = heard(one)
        assert said.count(b"200 OK") == begun.count(b"{}")
        assert answers(port)


def test_a_head_that_trickles_is_given_up() -> None:
    with serving(Service()) as port, closing(talk(port)) as one:
        one.sendall(b"POST /v1/completions HTTP/1.1\r\n")
        with pytest.raises(OSError, match=r"reset|pipe"):
            send_on(one, b"x: y\r\n")


def test_who_asks_again_and_again_keeps_the_connection() -> None:
    with serving(Service()) as port, closing(talk(port)) as one:
        end = time.monotonic() + 2 * SHORT.head
        while time.monotonic() < end:
            one.sendall(ASK)
            said = b""
            while not said.endswith(SAID):
                said += (piece := one.recv(65536))
                assert piece
            time.sleep(0.02)


def test_a_body_that_never_ends_is_408() -> None:
    with serving(Service()) as port, closing(talk(port)) as one:
        one.sendall(ASK[:-1])
        head, _, body = heard(one).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert "1.5 s" in json.loads(body)["error"]["message"]
        assert answers(port)


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "chunked"])
def test_a_body_too_large_is_413_and_not_kept(stated: bool) -> None:
    large = b"x" * 1_000_000
    with serving(Service()) as port, closing(talk(port)) as one:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n"
        if stated:
            one.sendall(head + b"content-length: %d\r\n\r\n" % len(large) + large)
        else:
            one.sendall(head + b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n" % len(large) + large + b"\r\n0\r\n\r\n")
        assert one.recv(12) == b"HTTP/1.1 413"
        assert answers(port)


@pytest.mark.parametrize("begun", [b"\r\nx", b"expect: 100-continue\r\n\r\n"], ids=["sent", "waiting to be asked for it"])
def test_a_body_of_untold_size_is_refused_without_reading_it(begun: bytes) -> None:
    with serving(Service()) as port, closing(talk(port)) as one:
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n" + begun)
        assert one.recv(12) == b"HTTP/1.1 413"
        assert answers(port)


def test_odd_requests_write_nothing_into_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever reaches the port could fill the disk with it."""
    with serving(Service()) as port:
        for odd in (
            b"\x16\x03\x01\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: upgrade, close\r\nupgrade: h2c\r\n\r\n",
        ):
            with closing(talk(port)) as one:
                one.sendall(odd)
                assert heard(one).startswith(b"HTTP/1.1 ")
    assert capfd.readouterr() == ("", "")


def test_a_reader_that_never_reads_ends_in_bounded_memory() -> None:
    service = Service(endless=True)
    with serving(service) as port, closing(talk(port)) as one:
        one.sendall(ASK)
        assert service.closed.wait(PATIENCE)
        assert service.sent * len(EVENT) < 20_000_000  # what sockets and one buffer hold
        service.endless = False
        assert answers(port)


def test_a_reader_that_reads_slowly_is_served_on() -> None:
    served, read = False, 0
    for _ in range(20):
        service = Service(endless=True)
        with serving(service) as port, closing(talk(port)) as one:
            one.sendall(ASK)
            read, pause = read_slowly(one)
            served = not service.closed.is_set()
        assert service.closed.wait(PATIENCE)
        if pause < SHORT.unread / 2:
            break
        # else it was the machine that kept this reader from reading, for so long that the server may give it up
    assert served
    assert read > 50 * len(EVENT)


def read_slowly(one: socket.socket) -> tuple[int, float]:
    """Bytes of three times as long as a reader may pause, and the longest pause between two reads; fewer where it ends."""
    read, longest, began = 0, 0.0, time.monotonic()
    last = began
    while time.monotonic() < began + 3 * SHORT.unread and (got := len(one.recv(1_000_000))):
        read, longest, last = read + got, max(longest, time.monotonic() - last), time.monotonic()
        time.sleep(0.02)
    return read, longest


def test_more_connections_than_allowed_are_turned_away() -> None:
    with serving(Service(endless=True)) as port:
        held = [talk(port) for _ in range(SHORT.connections)]
        for one in held:
            one.sendall(ASK)
        assert all(one.recv(12) == b"HTTP/1.1 200" for one in held)
        with closing(talk(port)) as late:
            assert heard(late).startswith(b"HTTP/1.1 503")
        for one in held:
            one.close()


@pytest.mark.parametrize(
    ("coding", "status"), [(b"gzip", b"415"), (b"deflate", b"415"), (b"br, gzip", b"415"), (b"Identity", b"200")]
)
def test_a_compressed_body_is_refused_not_inflated(coding: bytes, status: bytes) -> None:
    """What a proxy would take for something small may be large in here, and something else."""
    with serving(Service()) as port, closing(talk(port)) as one:
        one.sendall(POST + b"content-encoding: " + coding + b"\r\ncontent-length: 2\r\n\r\n{}")
        assert one.recv(12) == b"HTTP/1.1 " + status
        assert answers(port)


INNER = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"
POST = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n"


@pytest.mark.parametrize(
    "asked",
    [
        POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}" + INNER,
        POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
        POST + b"content-length: +2\r\n\r\n{}" + INNER,
        POST + b"content-length : 2\r\n\r\n{}" + INNER,
        POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n" + INNER,
        POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
        POST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + INNER,
        POST + b"host: localhost\r\ncontent-length: 2\r\n\r\n{}" + INNER,
        POST + b"x\x00: 1\r\ncontent-length: 2\r\n\r\n{}" + INNER,
        POST + b"x: y\r\n" * 20_000,
        POST + b"x: " + b"y" * 100_000,
        POST + b"transfer-encoding: chunked\r\n\r\n1;" + b"x" * 100_000,
    ],
    ids=["lengths", "both", "sign", "space", "identity", "twice", "tab", "hosts", "zero", "headers", "header", "extension"],
)
def test_no_second_request_hides_behind_an_odd_one(asked: bytes) -> None:
    """A proxy may read such a head otherwise than we do: it is refused, and nothing behind it is taken for a request."""
    with serving(Service()) as port, closing(talk(port)) as one:
        one.sendall(asked)
        said = heard(one)
        assert said.count(b"HTTP/1.1 ") <= 1
        assert b" 200 OK" not in said
        assert answers(port)


def test_chunks_that_never_end_are_cut_off() -> None:
    """Of a sender that stops in between, and of one that goes on after it was refused."""
    head, chunk = POST + b"transfer-encoding: chunked\r\n\r\n", b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    with serving(Service()) as port:
        with closing(talk(port)) as one:
            one.sendall(head + b"1\r\nx\r\n")
            assert one.recv(12) == b"HTTP/1.1 408"
        with closing(talk(port)) as one:
            one.sendall(head)
            with pytest.raises(OSError, match=r"reset|pipe"):
                send_on(one, chunk)
        assert answers(port)


def send_on(one: socket.socket, what: bytes) -> None:
    """Again and again, for as long as it is taken."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        one.sendall(what)
        time.sleep(0.01)
