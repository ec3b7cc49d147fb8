"""The writing end of a pipe: answers to one request of forge's own tensorrt_llm_bls, straight to its process.

The reading end is ``forge.repository.skeletons.pipe``, which says what a pipe is. Its name comes with the request, and the
request may be anybody's: only sockets under forge's prefix, of this same user, are written to.
"""

import json
import os
import re
import socket
import struct
from collections.abc import Mapping

from .arrays import Array
from .faults import RequestFault

_PARAMETER = "forge_pipe"
_NAME = "\0forge-pipe-"
_PATIENCE = 30
"""Seconds that a reader may leave a full pipe unread; a socket holds some thousand tokens."""


class Pipe:
    """Writes may fail once the reader has gone; ``gone`` says so, and later writes are dropped."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer, self._gone = peer, False

    def send(self, arrays: Mapping[str, Array], *, last: bool) -> None:
        """One answer's arrays by name; ``last`` closes the pipe."""
        table = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
        self._write({"arrays": table, "last": last}, b"".join(array.tobytes() for array in arrays.values()))
        if last:
            self.close()

    def fail(self, what: str) -> None:
        """Ends the answers with an error."""
        self._write({"error": what}, b"")
        self.close()

    def close(self) -> None:
        """Nothing more comes; without an end before, its reader takes it for a death."""
        self._peer.close()

    def gone(self) -> bool:
        """Whether nobody reads any more; the reader itself never writes."""
        if not self._gone:
            try:
                self._gone = self._peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                return False
            except OSError:
                self._gone = True
        return self._gone

    def _write(self, told: Mapping[str, object], body: bytes) -> None:
        head = json.dumps(told).encode()
        try:
            if not self._gone:
                self._peer.sendall(struct.pack("<II", len(head), len(body)) + head + body)
        except OSError:
            self._gone = True


def named(parameters: str) -> str:
    """The pipe that a request's parameters (JSON) name, or the empty string; RequestFault where it is no pipe's name."""
    if _PARAMETER not in parameters:
        return ""
    name = str(json.loads(parameters).get(_PARAMETER, ""))
    if not re.fullmatch(r"[0-9a-f]{32}", name):
        raise RequestFault(f"parameter {_PARAMETER} is for tensorrt_llm_bls alone")
    return name


def opened(name: str) -> Pipe | None:
    """The pipe of that name; None where its reader has hung up already."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.setblocking(False)  # a socket with a full queue is no pipe: nobody waits for it
    try:
        peer.connect(_NAME + name)
        _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except OSError:
        peer.close()
        return None
    if user != os.geteuid():
        peer.close()
        return None
    # Python's own timeout would make ``gone`` wait too.
    peer.setblocking(True)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _PATIENCE, 0))
    return Pipe(peer)
