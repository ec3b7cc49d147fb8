"""The reading end of a pipe: what the twin's tensorrt_llm answers to one request, straight from its process.

Stands beside tensorrt_llm_bls's model.py, which imports it; the writing end is ``forge.twin.pipe``. A pipe is a Unix socket
under a random abstract name (man 7 unix), which goes with the request as its parameter ``forge_pipe``. Tokens do not come by
``exec`` because Triton's Python stub can lock up there: docs/decisions/0010-tokens-come-by-a-pipe-of-forges-own.md.
"""

import contextlib
import json
import math
import os
import secrets
import socket
import struct
import threading
from collections.abc import Iterator
from io import BufferedReader
from typing import NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

PARAMETER = "forge_pipe"
NAME = "\0forge-pipe-"
HEAD = struct.Struct("<II")
"""Before each answer: the bytes of its JSON, and of its arrays one after the other."""


class _Told(TypedDict):
    """``arrays``: a name, numpy's type and the shape of each."""

    arrays: NotRequired[list[tuple[str, str, list[int]]]]
    last: NotRequired[bool]
    error: NotRequired[str]


class PipeFault(Exception):  # noqa: N818 (an answer to the client, not a fault of this model)
    """tensorrt_llm failed in the middle, or is gone."""


class Pipe:
    """One thread reads, and closes it at the end; ``shut`` and ``hang_up`` belong to any."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(16)
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connected = False
        self._socket.bind(NAME + self.name)
        self._socket.listen(1)

    def read(self) -> Iterator[dict[str, NDArray[np.generic]]]:
        """The answers' arrays by name; none where ``shut`` comes before tensorrt_llm. PipeFault where they break off."""
        try:
            if self._connect():
                with self._socket.makefile("rb") as file:
                    yield from _answers(file)
        except OSError as error:
            raise PipeFault(f"tensorrt_llm is gone: {error}") from error

    def shut(self) -> None:
        """tensorrt_llm is done with the request: if it has not come yet, it comes no more."""
        with self._lock:
            if not self._connected:
                self._shutdown()

    def hang_up(self) -> None:
        """Nobody wants more: tensorrt_llm finds the pipe closed and ends the request."""
        with self._lock:
            self._shutdown()

    def close(self) -> None:
        """For the thread that reads, when it is through with it."""
        with self._lock:
            self._socket.close()

    def _shutdown(self) -> None:
        with contextlib.suppress(OSError):  # closed, or the other end is
            self._socket.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> bool:
        """Whether somebody of this user has come; the door is closed behind them."""
        while True:
            try:
                found, _ = self._socket.accept()
            except OSError:
                return False
            if _user(found) == os.geteuid():
                break
            found.close()
        with self._lock:
            self._socket.close()
            self._socket, self._connected = found, True
        return True


def _answers(file: BufferedReader) -> Iterator[dict[str, NDArray[np.generic]]]:
    last = False
    while not last:
        head, body = HEAD.unpack(_exactly(file, HEAD.size))
        told = cast("_Told", json.loads(_exactly(file, head)))
        data = _exactly(file, body)
        if "error" in told:
            raise PipeFault(told["error"])
        found: dict[str, NDArray[np.generic]] = {}
        start = 0
        for name, kind, shape in told.get("arrays", ()):
            array: NDArray[np.generic] = np.frombuffer(data, np.dtype(kind), math.prod(shape), start).reshape(shape)
            found[name], start = array, start + array.nbytes
        last = told.get("last", False)
        if found:
            yield found


def _exactly(file: BufferedReader, count: int) -> bytearray:
    """Writable: Triton's tensors take no other arrays."""
    data = bytearray(count)
    if file.readinto(data) < count:
        raise PipeFault("tensorrt_llm ended in the middle of an answer")
    return data


def _user(peer: socket.socket) -> int:
    """The user who runs the other end."""
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(user)
