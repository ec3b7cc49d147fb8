"""The engine's process, as the backend holds it: started, spoken to, heard, and ended with all that it has started."""

import os
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from . import frames, remains
from .frames import Message

_PATIENCE = 8.0
"""Seconds that it has to end in order; Triton gives a server 10 in all (``--exit-timeout-secs``, as forge sets it)."""
_KEPT = 40
"""Lines of what it said last, for whoever asks why it ended."""


class EngineEndedError(Exception):
    """The engine's process is gone; says what its last lines were."""


class EngineProcess:
    """``python -m PACKAGE.engine`` in a process group of its own. ``say`` is given each line that it prints, ``first`` is what
    it is told first: the engine's arguments, and its adapters.

    Nobody else can reach it: its socket has no name, and is handed over at the start.
    """

    def __init__(self, python: str, first: Message, server: str, say: Callable[[str], None], gpus: str = "") -> None:
        package = Path(__file__).parent
        self._prefix = remains.prefix(server, os.getpid())
        remains.clear(self._prefix)
        environ = remains.environment(
            dict(os.environ),
            self._prefix,
            remains.folder(self._prefix),
            eager=bool(cast("Message", first["arguments"]).get("enforce_eager")),
        )
        environ["PATH"] = f"{Path(python).parent}{os.pathsep}{environ.get('PATH', os.defpath)}"
        environ["PYTHONPATH"] = str(package.parent)
        if gpus:  # the numbers are nvidia-smi's, which CUDA counts otherwise by itself
            environ |= {"CUDA_VISIBLE_DEVICES": gpus, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        self._socket, theirs = socket.socketpair()
        self._last: deque[str] = deque(maxlen=_KEPT)
        self._say, self._writing = say, threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                (python, "-s", "-P", "-m", f"{package.name}.engine", str(theirs.fileno())),
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=(theirs.fileno(),),
                process_group=0,  # not a session: forge asks the leaders of a server's sessions to finish first
            )
        self._lines = threading.Thread(target=self._hear, args=(cast("IO[str]", self._process.stdout),), daemon=True)
        self._lines.start()
        self._ended = threading.Thread(target=self._await_end, daemon=True)
        self._ended.start()
        self.send(first)

    def send(self, message: Message) -> None:
        """Tell it something; one that is gone hears nothing, and ``read`` says so."""
        with self._writing, suppress(OSError):
            self._socket.sendall(frames.packed(message))

    def read(self) -> list[Message]:
        """What it says next, when it does; EngineEndedError once it is gone."""
        said = frames.read(self._socket)
        if said is None:
            self._ended.join()
            self._lines.join(1.0)
            raise EngineEndedError(self._why())
        return said

    def end(self) -> None:
        """End it and what it has started, in order if it can; nothing of it is left."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._ended.join(_PATIENCE)
        self._kill()
        self._ended.join()
        self._socket.close()

    def _await_end(self) -> None:
        """However it ended: its children, which hold the other end of the socket too, end now."""
        self._process.wait()
        self._kill()
        remains.clear(self._prefix)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _hear(self, lines: IO[str]) -> None:
        for line in lines:
            if text := line.rstrip():
                self._last.append(text)
                self._say(text)

    def _why(self) -> str:
        status = self._process.returncode
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return "\n".join((f"vLLM's process has ended ({how})", *self._last))
