"""Breaks a process off at each of its system calls that change a tree, by a kill or by the disk's refusal."""

import errno
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from forge.errors import RepositoryError

_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "os.utime"}
_TAKES_ROOM = {"os.mkdir", "os.link", "os.symlink", "open"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

WENT_THROUGH, KILLED, REFUSED, SWALLOWED = 0, 9, 3, 4
Break = Callable[[str], None]
"""What happens at the call of that name."""


def kill(_: str) -> None:
    os._exit(KILLED)


def refuse(number: int) -> Break:
    def now(_: str) -> None:
        raise OSError(number, os.strerror(number))

    return now


def fill_up(call: str) -> None:
    """A full disk: what takes no room still works."""
    if call in _TAKES_ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def cut_short(call: str) -> None:
    """A file that is opened stays empty: what is written to it is refused. Over with the next call."""
    if call == "open":
        _limit_files(0)


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _trip(at: int, happens: Break, *, lasting: bool) -> Callable[[], bool]:
    """From now on count the calls that change a tree, and have it happen before the one with that number, or from it on."""
    seen, deaf = 0, False

    def count(call: str) -> None:
        nonlocal seen, deaf
        if deaf:
            return
        seen += 1
        if seen - 2 == at and not lasting:
            _limit_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        if seen - 1 == at or (lasting and seen > at):
            deaf = True
            try:
                happens(call)
            finally:
                deaf = False

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event in _CHANGES:
            count(event)
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            count("open")

    flush = os.fsync

    def flushed(descriptor: int) -> None:
        count("fsync")
        flush(descriptor)

    os.fsync = flushed  # type: ignore[assignment]
    sys.addaudithook(hear)
    return lambda: seen > at


def break_off(act: Callable[[], object], happens: Break, *, lasting: bool = False) -> Iterator[tuple[int, int]]:
    """Run ``act`` in a child that is broken off before its first such call, then in one before its second, and so on.

    Yields the number of the call and how the child ended, for the caller to look at what is left and to set all up anew. Ends
    with the child that nothing happened to. Forks: for a process of one thread.
    """
    for at in range(10**5):
        pid = os.fork()
        if pid == 0:
            _live(act, at, happens, lasting=lasting)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert ended in (WENT_THROUGH, KILLED, REFUSED, SWALLOWED), f"call {at}: it ended with {ended}"
        yield at, ended
        if ended == WENT_THROUGH:
            return


def _live(act: Callable[[], object], at: int, happens: Break, *, lasting: bool) -> None:
    code = 1
    try:
        tripped = _trip(at, happens, lasting=lasting)
        try:
            act()
            code = SWALLOWED if tripped() else WENT_THROUGH
        except RepositoryError as error:
            code = REFUSED if error.what and error.where and error.hint else 1
    except BaseException:  # noqa: BLE001 - a forked child must end here, whatever happened
        traceback.print_exc()
    finally:
        os._exit(code)


def shown(tree: Path) -> dict[str, str]:
    """All of a tree: each file with its text, each folder with nothing."""
    found: dict[str, str] = {}
    for folder, _, files in os.walk(tree):
        found[os.path.relpath(folder, tree)] = ""
        for name in files:
            path = Path(folder) / name
            found[os.path.relpath(path, tree)] = path.read_text(encoding="utf-8")
    return found
