"""Holds the process that renders one chat template (``forge.client.renderer``); one that is beyond its limits is ended."""

import json
import os
import select
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast

from msgspec import Struct

from forge.files.interpreter import own_python

MEMORY = 512 * 2**20
"""Bytes that a template may take."""
_BY_LENGTH = 16
"""Bytes of memory for each byte of a conversation, where recipes allow such that are longer than 32 MiB."""
_WAITS = 10
"""A machine that is busy has this many times the template's processor time before it is given up."""
_STARTS = 60.0
_KEPT = ("TZ", "PATH")
_PROGRAM = Path(__file__).with_name("renderer.py")
"""Started by its path: importing it would bring jinja2 into forge."""
_ALIVE = frozenset({"text", "refused", "long", "failed"})
"""Answers after which it is as good as before."""
_PART = 2**16


class Bounds(Struct, frozen=True):
    """What rendering may take: seconds of processor time, and characters of text that come out."""

    seconds: float
    longest: int

    @property
    def memory(self) -> int:
        """Bytes."""
        return max(MEMORY, _BY_LENGTH * self.longest)


class DiedError(Exception):
    """The process is gone. ``late``: its time was over; ``how``: its exit status in words."""

    def __init__(self, how: str, *, late: bool = False) -> None:
        super().__init__(how)
        self.how = how
        self.late = late


class RendererProcess:
    """Started by the first conversation, and again after one that ended it. Threads take turns."""

    def __init__(self, source: str, bounds: Bounds) -> None:
        self._begin = {"source": source, "seconds": bounds.seconds, "longest": bounds.longest, "memory": bounds.memory}
        self._patience = bounds.seconds * _WAITS
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finish: Callable[[], object] = int
        self._useless: Mapping[str, object] = {}
        """What was said of a template that cannot be read."""

    def render(self, values: Mapping[str, object]) -> Mapping[str, object]:
        """``{"text": ...}``, or one entry that says what went wrong (see ``forge.client.renderer``); DiedError."""
        with self._turn:
            answer: Mapping[str, object] = {}
            try:
                answer = self._useless or self._answer(values)
                return answer
            finally:
                # What came to no good end is not asked again: it is dead, in the midst of something, or short of memory.
                if not answer.keys() & _ALIVE or self._useless:
                    self._finish()
                    self._process = None

    def read(self) -> Mapping[str, object]:
        """What is said of the template alone: ``{"text": ""}`` where it can be read; DiedError."""
        process = _started()
        try:
            return _exchange(process, self._begin, _STARTS + self._patience)
        finally:
            _end(process)

    def _answer(self, values: Mapping[str, object]) -> Mapping[str, object]:
        if self._process is None:
            self._process = _started()
            self._finish = weakref.finalize(self, _end, self._process)
            begun = _exchange(self._process, self._begin, _STARTS + self._patience)
            if "text" not in begun:
                self._useless = begun
                return begun
        return _exchange(self._process, values, self._patience)


def _started() -> subprocess.Popen[bytes]:
    """Without site-packages' start-up files, in an environment that says nothing but where jinja2 is."""
    found = (find_spec(name) for name in ("jinja2", "markupsafe"))
    places = dict.fromkeys(str(Path(spec.origin).parents[1]) for spec in found if spec and spec.origin)
    process = subprocess.Popen(
        (own_python(), "-P", "-S", str(_PROGRAM)),
        env={"PYTHONPATH": os.pathsep.join(places)} | {name: os.environ[name] for name in _KEPT if name in os.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
    for pipe in _pipes(process):
        os.set_blocking(pipe.fileno(), False)
    return process


def _exchange(process: subprocess.Popen[bytes], asked: Mapping[str, object], patience: float) -> Mapping[str, object]:
    """Its answer; DiedError where none comes in ``patience`` seconds, or ever."""
    told, heard = _pipes(process)
    left, answer = memoryview(json.dumps(asked).encode() + b"\n"), bytearray()
    deadline = time.monotonic() + patience
    ready = select.poll()
    ready.register(heard, select.POLLIN)
    ready.register(told, select.POLLOUT)
    while not answer.endswith(b"\n"):
        with suppress(BrokenPipeError):  # the other pipe says so, too
            left = left[told.write(left) or 0 :]
        if not left:
            ready.modify(told, 0)
        events = ready.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not events and time.monotonic() > deadline:
            raise DiedError(f"no answer in {patience:g} s", late=True)
        if any(number == heard.fileno() for number, _ in events):
            part = heard.read(_PART)
            if not part:
                raise _death(process)
            answer += part
    return cast("Mapping[str, object]", json.loads(answer))


def _death(process: subprocess.Popen[bytes]) -> DiedError:
    process.kill()
    code = process.wait()
    if code == -signal.SIGPROF:
        return DiedError("its time is over", late=True)
    if code == -signal.SIGKILL:
        return DiedError("it was killed")
    return DiedError(f"exit status {code}")


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    return cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in _pipes(process):
        pipe.close()
