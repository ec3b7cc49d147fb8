"""The wire between the backend and its engine: JSON, each message after its length in four bytes.

backend to engine: ``{"arguments": {...}}`` once, then ``{"ask": ID, "prompt": TEXT, "sampling": {...}, "stream": BOOL,
"logprobs": BOOL, "images": [BASE64, ...]}``, ``{"abort": ID}``, and ``{"heard": true}`` for each list that came: a request says
nothing more until then. It has ended when the backend shuts its end.

engine to backend: ``{"ready": {...}}`` once, then lists of ``{"id": ID, "outputs": [...], "input_tokens": N, "finished":
BOOL}`` and ``{"id": ID, "error": TEXT}``; ``{"dead": TEXT}`` when vLLM has died.
"""

import json
import socket
import struct
from typing import cast

_HEAD = struct.Struct(">I")
LENGTH = _HEAD.size
"""Bytes before each message."""

Message = dict[str, object]


def packed(message: object) -> bytes:
    """A message as it goes over the wire."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _HEAD.pack(len(body)) + body


def length(head: bytes) -> int:
    """How long the message after ``head`` is, in bytes."""
    return int(_HEAD.unpack(head)[0])


def parsed(body: bytes) -> list[Message]:
    """The messages of one frame: one, or those that were said together."""
    found = json.loads(body)
    return cast("list[Message]", found if isinstance(found, list) else [found])


def read(sock: socket.socket) -> list[Message] | None:
    """The next messages; None where the other end is gone, also in the middle of one."""
    try:
        head = _exactly(sock, LENGTH)
        body = _exactly(sock, length(head)) if head else None
    except OSError:
        return None
    return None if body is None else parsed(body)


def _exactly(sock: socket.socket, count: int) -> bytes | None:
    held = bytearray()
    while len(held) < count:
        part = sock.recv(min(count - len(held), 1 << 20))
        if not part:
            return None
        held += part
    return bytes(held)
