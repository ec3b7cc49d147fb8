"""A server that takes each gRPC connection, hears one request and ends the connection by HTTP/2's GOAWAY with an error."""

import socket
import socketserver
import struct
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

_SETTINGS, _GOAWAY = 4, 7
_ACKNOWLEDGED = 1
_INTERNAL_ERROR = 2
"""RFC 9113, sections 6 and 7."""
_HEADERS = b"\x01\x04"
"""Kind and flags of a request's head as gRPC sends it: HEADERS with END_HEADERS."""


def _frame(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", 0) + payload


class _Ender(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        connection: socket.socket = self.request
        heard = b""
        with suppress(OSError):
            connection.sendall(_frame(_SETTINGS) + _frame(_SETTINGS, flags=_ACKNOWLEDGED))
            while _HEADERS not in heard and (piece := connection.recv(4096)):
                heard += piece
            connection.sendall(_frame(_GOAWAY, struct.pack(">II", 0, _INTERNAL_ERROR) + b"Cancelling all calls"))


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@contextmanager
def server() -> Generator[str]:
    """Its address."""
    with _Server(("127.0.0.1", 0), _Ender) as door:
        thread = threading.Thread(target=door.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{door.server_address[1]}"
        door.shutdown()
        thread.join()
