"""What a reader does besides reading, by Python's audit events: what it changes outside its folder, what it starts or calls.

Such an attempt is stopped by ``Outside`` before it happens, and noted: whoever swallows the error is found, too. What a library
does in C is not seen here.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn")
_SOCKETS = ("connect", "bind", "sendto", "sendmsg", "getaddrinfo", "gethostbyname", "gethostbyaddr")
_REFUSED = frozenset((*_PROCESSES, "os.kill", "os.killpg", *(f"socket.{name}" for name in _SOCKETS)))
"""Nothing is started, ended, called or looked up."""
_NAMES = {
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
}
"""What changes a name: which arguments are paths, and the folders that these begin at. A path's last part is not followed."""
_FOLLOWED = {"os.chmod": 2, "os.chown": 3, "os.utime": 3, "os.truncate": -1, "os.setxattr": -1, "os.removexattr": -1}
"""What changes that to which a path leads, and the argument that is the folder which it begins at (-1: none)."""


class Outside(BaseException):
    """A reader was about to change, start or call something that is not its own."""


class _Hook:
    """Heard is every event of the process: one that nobody is confined in is let through at once."""

    def __init__(self) -> None:
        self.folder = ""
        self.seen: list[str] = []

    def __call__(self, event: str, given: tuple[object, ...]) -> None:
        if not self.folder:
            return
        if event == "open":
            path, _, flags = given
            if isinstance(flags, int) and flags & _WRITING and not isinstance(path, int) and path != os.devnull:
                self._hold(event, os.path.realpath(_text(path)))
        elif event in _NAMES:
            for path, base in _NAMES[event]:
                self._hold(event, _named(given[path], given[base]))
            if event == "os.symlink":
                self._hold(event, os.path.realpath(os.path.join(os.path.dirname(_named(given[1], given[2])), _text(given[0]))))
        elif event in _FOLLOWED:
            base = _FOLLOWED[event]
            if not isinstance(given[0], int):
                self._hold(event, os.path.realpath(_based(given[0], given[base] if base > 0 else -1)))
        elif event in _REFUSED:
            self._refuse(f"{event} {given!r}")

    def _hold(self, event: str, real: str) -> None:
        if not f"{real}/".startswith(f"{os.path.realpath(self.folder)}/"):
            self._refuse(f"{event} {real!r}")

    def _refuse(self, what: str) -> None:
        self.seen.append(what[:500])
        raise Outside(what[:500])


@cache
def _hook() -> _Hook:
    """An audit hook cannot be taken away again: a process has one."""
    hook = _Hook()
    sys.addaudithook(hook)
    return hook


@contextmanager
def confined(folder: Path) -> Generator[list[str]]:
    """Hold all threads of this process to ``folder`` in a ``with`` block; what was tried outside is in the list."""
    hook, before = _hook(), sys.dont_write_bytecode
    seen: list[str] = []
    hook.seen, hook.folder, sys.dont_write_bytecode = seen, str(folder), True
    try:
        yield seen
    finally:
        hook.folder, sys.dont_write_bytecode = "", before


def _named(path: object, base: object) -> str:
    """Where a name is, whatever it leads to."""
    folder, name = os.path.split(_based(path, base))
    return os.path.join(os.path.realpath(folder), name) if name not in ("", ".", "..") else os.path.realpath(_based(path, base))


def _based(path: object, base: object) -> str:
    return os.path.join(f"/proc/self/fd/{base}", _text(path)) if isinstance(base, int) and base >= 0 else _text(path)


def _text(path: object) -> str:
    return os.fsdecode(path) if isinstance(path, bytes) else str(path)
