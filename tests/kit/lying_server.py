"""A web server on the loopback that says whatever a test has it say, for as long as somebody listens."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Liar:
    """``heads`` are the heads of the requests that it was sent, ``sent`` the bytes of bodies that it could get rid of."""

    port: int = 0
    heads: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    sent: int = 0
    over: threading.Event = field(default_factory=threading.Event)


class Turn:
    """One request: where it is to, and the way to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler, liar: Liar) -> None:
        self._handler = handler
        self._liar = liar
        self.path = handler.path

    def say(self, status: int = 200, body: bytes = b"", /, **headers: object) -> None:
        """An answer; with its length, unless that is among ``headers`` (content_length=None: it ends with the connection)."""
        self._handler.send_response(status)
        stated = {"content_length": len(body), "connection": "close", **headers}
        for name, value in stated.items():
            if value is not None:
                self._handler.send_header(name.replace("_", "-"), str(value))
        self._handler.end_headers()
        self.go_on(body)

    def go_on(self, piece: bytes) -> None:
        self._handler.wfile.write(piece)
        self._handler.wfile.flush()
        self._liar.sent += len(piece)

    def never_end(self, piece: bytes = bytes(1 << 16)) -> None:
        """Until the other side or the test has enough; who takes half a gigabyte has shown that it would take all."""
        while not self._liar.over.is_set() and self._liar.sent < 1 << 29:
            self.go_on(piece)

    def drip(self, count: int = 400) -> None:
        """So many bytes, one by one: whoever waits for all of them waits for long."""
        while count and not self._liar.over.wait(0.05):
            self.go_on(b" ")
            count -= 1


@contextmanager
def lying(answer: Callable[[Turn], None]) -> Generator[Liar]:
    """Every request is answered by ``answer``."""
    liar = Liar()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            liar.heads.append({name.lower(): value for name, value in self.headers.items()})
            self.close_connection = True
            with suppress(OSError):
                answer(Turn(self, liar))

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815  (the names are the library's)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name is the library's)
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        liar.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield liar
        finally:
            liar.over.set()
            server.shutdown()
            thread.join()
