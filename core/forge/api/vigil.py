"""``python -m forge.api.vigil HOME MARKER restart|leave SECONDS``: looks after one server until that ends.

Its models that die are restarted (``forge.serve.recovery``), and so is Triton itself (``forge.serve.restart``); files that were
not read for so long are read (``forge.serve.scrub``; 0: none).
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from forge.api.wiring import Wiring
from forge.errors import ForgeError
from forge.serve.launch import Held, launch
from forge.serve.recovery import LOOK, Watch
from forge.serve.restart import Hang, Restart
from forge.serve.scrub import Scrub
from forge.serve.server_types import Launch, Running, Server
from forge.serve.update import lend
from forge.store.store import Store

_PATIENCE = 5.0
"""Seconds for the scrub to end."""
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
"""Number of the system call, by machine (linux/ioprio.h; glibc has no name for it)."""
_WHO_PROCESS = 1
_IDLE = 3 << 13


def main(home: Path, marker: str, *, restart: bool = True, scrub: float = 0.0) -> None:
    """Return when no server carries ``marker`` any more."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever ends the server ends this too, and a traceback tells nobody anything
    server, store = Wiring(home, os.environ, say).server, Store(home / "store", clock=time.time)

    def plan(held: Held, running: Running) -> Launch:
        return launch(held, store, running.ports, on=running.base)

    watch, hang, hung = Watch(server, plan, time.monotonic, time.time, say), Hang(server, time.monotonic), ""
    with _scrubbing(server, marker, store, scrub):
        while True:
            try:
                running = server.current(marker)
                if running is None:
                    if not (restart and Restart(server, plan, time.time, time.sleep, say).attempt(marker, hung)):
                        return
                    watch, hang = Watch(server, plan, time.monotonic, time.time, say), Hang(server, time.monotonic)
                    hung = ""
                    if risen := server.current(marker):
                        lend(store, risen)
                elif restart:
                    watch.look(running)
                    if hung := hang.look(running):
                        say(f"Triton (process {running.pid}) hangs and is ended: {hung}")
                        server.kill(running)
            except (ForgeError, OSError) as error:  # a container engine that is away, a full disk: it may be better next time
                say(str(error))
            time.sleep(LOOK)


@contextmanager
def _scrubbing(server: Server, marker: str, store: Store, after: float) -> Generator[None]:
    """A thread that scrubs meanwhile, where that is wanted; its reads wait for those of everybody else."""
    if not after:
        yield
        return
    _step_back()
    enough = Event()

    def places() -> list[Path]:
        running = server.current(marker)
        return [Path(place) for place in running.repositories] if running else []

    def work() -> None:
        Scrub(store, time.thread_time, enough.wait, time.time, say).run(places, after)

    thread = Thread(target=work, name="scrub", daemon=True)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join(_PATIENCE)


def _step_back() -> None:
    """Have this process, and threads that it starts from now on, read when nobody else does, where the system can."""
    number = _IOPRIO_SET.get(os.uname().machine)
    if number and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).syscall(number, _WHO_PROCESS, 0, _IDLE)


def say(text: str) -> None:
    """A line of the log, with the time."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)  # noqa: T201


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # a server that ends is no line of this log
    main(Path(sys.argv[1]), sys.argv[2], restart=sys.argv[3] == "restart", scrub=float(sys.argv[4]))
