"""What tests wait for: an event, however long a busy machine takes to bring it about, and ports that are theirs alone."""

import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom

from forge.schema.values import Ports

PATIENCE = 600.0
"""Seconds after which what a test waits for will never come, on any machine."""
_PORTS = range(20000, 32000)
"""Below those that Linux hands out by itself, for instance to a client that connects (ip_local_port_range)."""


def soon(true: Callable[[], bool], seconds: float = PATIENCE, pause: float = 0.02) -> bool:
    """Whether something comes true at last, or within so many ``seconds``. What takes long to compute is looked at less often:
    other tests want the processor."""
    end, used = time.monotonic() + seconds, time.process_time()
    while not (found := true()) and time.monotonic() < end:
        time.sleep(max(pause, min(1.0, 3 * (time.process_time() - used))))
        used = time.process_time()
    return found


def spare(count: int) -> tuple[int, ...]:
    """So many ports of the loopback that nobody listens on, and that no other test takes while this process lives."""
    found: list[int] = []
    while len(found) < count:
        port = SystemRandom().choice(_PORTS)
        if _mine(port) and _silent(port):
            found.append(port)
    return tuple(found)


def _mine(port: int) -> bool:
    """Whether this process has it from now on: a lock on a file, left to the system to give back."""
    folder = Path(tempfile.gettempdir()) / f"forge-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    lock = os.open(folder / str(port), os.O_CREAT | os.O_WRONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    return True


def _silent(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def free_ports() -> Ports:
    """A server's three."""
    http, grpc, metrics = spare(3)
    return Ports(http, grpc, metrics)
