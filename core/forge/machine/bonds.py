"""What forge starts to wait for (pip, git, a step's command, a probe) does not outlive it, however forge ends; nor do temporary
files."""

import atexit
import fcntl
import os
import secrets
import stat
import subprocess
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from forge.errors import HostError
from forge.files.interpreter import own_python
from forge.machine.interrupt import Halt
from forge.machine.processes import kill_group, without_secrets

MARK = "FORGE_CHILD"
"""Variable in the environment of what forge waits for, and of all that this starts."""
_REAPER = Path(__file__).with_name("reaper.py")
_APART = '"$@" <&3 3<&- &'
"""The shell starts it and is gone. So it is no child of this process, whose children some end before they end themselves (a
worker of Ray does, in its C++), and others wait for, whoever they are (``os.wait``). What a shell leaves behind reads nothing
at 0."""
_TEMPORARY = "TMPDIR"


class _Bond(NamedTuple):
    mark: str
    folder: str | None
    """None where no temporary folder can be written."""


_lock = threading.Lock()
_held: dict[int, _Bond] = {}
"""The one of this process; one that was forked off has its own."""


def _forked() -> None:
    """A child has one thread: whoever held the lock in its parent lets go of it there."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)


def require_own_proc() -> None:
    """HostError where /proc tells of another PID namespace: its numbers mean other processes than the system calls'."""
    with suppress(OSError):  # none is mounted: then nobody is seen
        if os.readlink("/proc/self") != str(os.getpid()):
            what = "/proc is that of another PID namespace: forge would take strangers' processes for its own"
            hint = "mount this one's: `unshare --pid --fork --mount-proc`, `bwrap --unshare-pid --proc /proc`"
            raise HostError(what, where="/proc", hint=hint)


def bound(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """``environ`` (this process's own, where none is given) for a program that has to end with this process,
    without what forge alone is told (tokens, passphrases).

    Its temporary files are in ``temporary()``, unless ``environ`` has another place for them than this process.
    """
    bond, given = _bond(), without_secrets(os.environ if environ is None else environ)
    if bond.folder and given.get(_TEMPORARY) in (None, os.environ.get(_TEMPORARY)):
        given[_TEMPORARY] = bond.folder
    return {**given, MARK: bond.mark}


def temporary() -> str | None:
    """The ``dir`` for what this process makes by ``tempfile``: a folder that goes with this process, however that ends.

    HostError where nothing temporary can be written at all.
    """
    place = _bond().folder
    if place is None:
        import tempfile

        try:
            tempfile.TemporaryFile().close()
        except OSError as error:
            what = f"no temporary file can be written: {error.strerror or error}"
            raise HostError(what, hint="set TMPDIR to a folder that can be written, and has room") from None
    return place


def _bond() -> _Bond:
    """The first call starts what sees to it (``forge.machine.reaper``): 1 ms of a shell, and 20 that nobody waits for."""
    with _lock:
        mine = os.getpid()
        if mine not in _held:
            _held.clear()
            _held[mine] = _Bond(secrets.token_hex(8), _made())
            # No room for one more process: then there is hardly any for what would be bound. HostError: no Python of its own.
            with suppress(OSError, HostError):
                _watch(_held[mine])
        place = _held[mine].folder
        if place and not _is_own(place):  # systems clear away what has lain there for days
            with suppress(OSError):
                os.mkdir(place, 0o700)
            if not _is_own(place):
                _held[mine] = _held[mine]._replace(folder=None)
        return _held[mine]


def _is_own(place: str) -> bool:
    """Whether it is a folder of this user's: its name stands in the list of processes, and another may lay one in its place."""
    try:
        held = os.lstat(place)
    except OSError:
        return False
    return stat.S_ISDIR(held.st_mode) and held.st_uid == os.geteuid()


def _made() -> str | None:
    import tempfile

    with suppress(OSError):
        return os.path.abspath(tempfile.mkdtemp(prefix=f"forge-{os.getpid()}-"))
    return None


@contextmanager
def child(
    argv: Sequence[str], environ: Mapping[str, str], halt: Halt, *, out: int = subprocess.PIPE, err: int = subprocess.STDOUT
) -> Generator[subprocess.Popen[str]]:
    """A program that the block waits for, bound, in a session of its own, and with nothing to read. Where the block ends before
    it (Ctrl-C), and where ``halt`` is pulled, it ends with all that it has started.
    """
    with subprocess.Popen(
        argv,
        env=bound(environ),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            with halt.ending(lambda: kill_group(process.pid)):
                yield process
        finally:
            if process.poll() is None:
                kill_group(process.pid)


def answered(argv: Sequence[str], environ: Mapping[str, str], seconds: float) -> subprocess.CompletedProcess[str] | None:
    """What a program says that only speaks; None where it cannot be started, or is not done in ``seconds``."""
    try:
        return subprocess.run(
            argv, env=bound(environ), capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _pipe() -> tuple[int, int]:
    """Apart from standard input, output and error, where these are closed: what others say there would be heard."""
    ends = os.pipe()
    high = (fcntl.fcntl(ends[0], fcntl.F_DUPFD_CLOEXEC, 3), fcntl.fcntl(ends[1], fcntl.F_DUPFD_CLOEXEC, 3))
    for end in ends:
        os.close(end)
    return high


def _watch(bond: _Bond) -> None:
    heard, told = _pipe()
    atexit.register(_dismiss, told, os.getpid(), bond.folder)
    ends = [told]
    os.register_at_fork(after_in_child=lambda: os.close(ends.pop()) if ends else None)  # else it would hide its parent's end
    devices = [(os.POSIX_SPAWN_OPEN, out, os.devnull, os.O_WRONLY, 0) for out in (1, 2)]
    try:
        between = os.posix_spawn(
            "/bin/sh",
            ("sh", "-c", _APART, "sh", own_python(), "-I", "-S", str(_REAPER), f"{MARK}={bond.mark}", bond.folder or ""),
            {},
            file_actions=[(os.POSIX_SPAWN_DUP2, heard, 3), *devices],
            setsid=True,
        )
        os.waitpid(between, 0)
    finally:
        os.close(heard)


def _dismiss(told: int, owner: int, place: str | None) -> None:
    """After a good end nothing is left; a helper that git keeps for all (a credential cache) may go on."""
    import shutil

    if os.getpid() == owner:
        if place:
            shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):
            os.write(told, b".")
