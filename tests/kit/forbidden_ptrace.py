"""A thread in which ptrace is forbidden, to it and to all that it starts, as a sandbox or a container's seccomp forbids it."""

import ctypes
import platform
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_PTRACE = {"x86_64": 101, "aarch64": 117}[platform.machine()]
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2
_LOAD, _SAME, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid() -> None:
    """For the calling thread, for good: ptrace(2) answers EPERM (seccomp(2), a filter of four instructions)."""
    steps = ((_LOAD, 0, 0, 0), (_SAME, 0, 1, _PTRACE), (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW))
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(steps), code)
    for words in ((_NO_NEW_PRIVS, 1, 0, 0, 0), (_SECCOMP, _FILTER, ctypes.byref(program))):
        if libc.prctl(*words):
            raise OSError(ctypes.get_errno(), "prctl")


def without_ptrace(work: Callable[[], T]) -> T:
    """What ``work`` gives in such a thread; what it raises is raised."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            forbid()
            found.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again below
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return found[0]
