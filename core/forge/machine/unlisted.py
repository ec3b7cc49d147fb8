"""``python unlisted.py [--shown] KEY PROGRAM ARGUMENT...``: becomes PROGRAM, with a secret that no list of processes shows.

``@secret`` in an argument stands for what the file KEY holds. Every user of a machine can read any process's arguments, and
Triton takes its secrets nowhere else. So the arguments that hold it go along in the environment, which only the same user can
read, and a helper that traces this process has the new program's ``argv`` point at them before its first instruction (the
initial stack of the System V ABI: argc, argv, 0, envp, 0). What a list of processes shows in their place is ``CLOSED``, which
no client can send: where tracing is forbidden, or KEY cannot be read, what the secret guards is closed to everybody. With
``--shown`` the secret itself stands there where tracing is forbidden. Standard error says so.

What the program makes is its user's alone (umask 077). It stands by itself: containers run it on their own Python.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from contextlib import suppress

SECRET = "@secret"  # noqa: S105  # what stands for it
CLOSED = "closed\x01"
"""No value of a header, of HTTP or of gRPC, can hold such a character."""
SHUT = "forge: ptrace is forbidden here, so the secret of model control cannot be handed over out of sight: it is closed"
SHOWN = "forge: ptrace is forbidden here, so the secret of model control stands in the list of processes"
ASKED_TO_SHOW = "--shown"
_HANDED = b"FORGE_UNLISTED_"
_SEIZE, _DETACH, _CONT = 0x4206, 17, 7
_TRACE_EXEC, _EXEC = 1 << 4, signal.SIGTRAP | 4 << 8
"""ptrace(2): the same numbers on x86-64 and on aarch64."""
_SET_TRACER = 0x59616D61
"""PR_SET_PTRACER: Yama lets a process name the one that may trace it."""
_WORD = 8
_LONGEST = 1 << 17
"""Bytes of one argument at most (MAX_ARG_STRLEN)."""


def main(key: str, words: "list[str]", *, shown: bool = False) -> None:
    """Does not return. As a shell: exit code 127 where there is no such program, 126 where it cannot be started."""
    os.umask(0o077)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):  # a connection takes one, and a Triton that has none left writes gigabytes of log
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    held = [word for word in words if SECRET in word]
    listed = [word.replace(SECRET, CLOSED) for word in words]
    secret = _read(key) if held else ""
    handed: dict[str, str] = {}
    if secret and _traced(len(words)):
        handed = {f"{_HANDED.decode()}{number}": word.replace(SECRET, secret) for number, word in enumerate(held)}
    elif secret:
        listed = [word.replace(SECRET, secret) for word in words] if shown else listed
        print(SHOWN if shown else SHUT, file=sys.stderr, flush=True)  # noqa: T201
    try:
        os.execvpe(listed[0], listed, {**os.environ, **handed})  # noqa: S606  # no shell is wanted
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        print(f"{listed[0]}: {'not found' if missing else error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(127 if missing else 126)


def _read(key: str) -> str:
    with suppress(OSError, UnicodeError), open(key, encoding="ascii") as file:
        return file.read().strip()
    return ""


def _traced(count: int) -> bool:
    """Whether a helper waits for this process to become another program with ``count`` arguments.

    The helper is an orphan: the program must not have a child of which it does not know.
    """
    me = os.getpid()
    (hear, said), (go, start) = os.pipe(), os.pipe()
    libc = ctypes.CDLL(None, use_errno=True)
    between = os.fork()
    if not between:
        with suppress(BaseException):
            if not os.fork():
                _help(libc, me, count, (said, go))
        os._exit(0)
    os.waitpid(between, 0)
    os.close(said)
    if not (helper := os.read(hear, 4)):
        return False
    libc.prctl(_SET_TRACER, ctypes.c_ulong(struct.unpack("i", helper)[0]), 0, 0, 0)
    os.write(start, b".")
    return os.read(hear, 1) == b"1"


def _help(libc: ctypes.CDLL, pid: int, count: int, pipes: "tuple[int, int]") -> None:
    """Trace ``pid`` until it has become the program; what a script runs in its own place is waited for."""
    said, go = pipes
    os.write(said, struct.pack("i", os.getpid()))
    os.read(go, 1)
    if _ptrace(libc, _SEIZE, pid, _TRACE_EXEC):
        os.write(said, b"0")
        return
    os.write(said, b"1")
    os.close(said)
    while True:
        _, status = os.waitpid(pid, 0x40000000)  # __WALL
        if not os.WIFSTOPPED(status):
            return
        if status >> 8 == _EXEC:
            with suppress(OSError, ValueError, struct.error):
                if _point(pid, count):
                    _ptrace(libc, _DETACH, pid, 0)
                    return
            _ptrace(libc, _CONT, pid, 0)
        else:  # a signal on its way
            _ptrace(libc, _CONT, pid, os.WSTOPSIG(status) if status >> 16 == 0 else 0)


def _ptrace(libc: ctypes.CDLL, what: int, pid: int, data: int) -> int:
    call = libc.ptrace
    call.restype = ctypes.c_long
    return int(call(ctypes.c_long(what), ctypes.c_long(pid), ctypes.c_void_p(0), ctypes.c_void_p(data)))


def _point(pid: int, count: int) -> bool:
    """Have ``argv`` point at what the environment holds, and the environment forget it; False for a script's interpreter."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        stack = int(file.read().rpartition(")")[2].split()[25])  # startstack: proc(5), field 28
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        (argc,) = _words(memory.fileno(), stack, 1)
        if argc != count:
            return False
        argv = stack + _WORD
        env = argv + (argc + 1) * _WORD
        at = {argv + number * _WORD: text for number, text in enumerate(_words(memory.fileno(), argv, argc))}
        places = [place for place, text in at.items() if CLOSED.encode() in _text(memory.fileno(), text)]
        slots = _environment(memory.fileno(), env)
        plain = next((text for text in slots.values() if not _text(memory.fileno(), text).startswith(_HANDED)), 0)
        for slot, text in slots.items():
            name, _, _ = _text(memory.fileno(), text).partition(b"=")
            if name.startswith(_HANDED):
                place = places[int(name[len(_HANDED) :])]
                os.pwrite(memory.fileno(), struct.pack("Q", text + len(name) + 1), place)
                os.pwrite(memory.fileno(), struct.pack("Q", plain or text), slot)
    return True


def _environment(memory: int, start: int) -> "dict[int, int]":
    """Where each entry of the environment is pointed at -> where it is."""
    found: dict[int, int] = {}
    place = start
    while text := _words(memory, place, 1)[0]:
        found[place] = text
        place += _WORD
    return found


def _words(memory: int, place: int, count: int) -> "tuple[int, ...]":
    return struct.unpack(f"{count}Q", os.pread(memory, count * _WORD, place))


def _text(memory: int, place: int) -> bytes:
    """A string, which may end near the end of the stack: a page is read at a time."""
    found = b""
    while b"\0" not in found and len(found) < _LONGEST:
        piece = os.pread(memory, 4096 - place % 4096, place)
        if not piece:
            break
        found, place = found + piece, place + len(piece)
    return found.partition(b"\0")[0]


if __name__ == "__main__":
    asked = sys.argv[1] == ASKED_TO_SHOW
    main(sys.argv[1 + asked], sys.argv[2 + asked :], shown=asked)
