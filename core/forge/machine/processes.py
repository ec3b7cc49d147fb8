"""What this machine's processes, ports and shared memory say: who runs, who listens, what to clear away. Linux's /proc."""

import errno
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from msgspec import Struct

from forge.schema.values import Ports

MARKER = "FORGE_SERVER"
"""Variable in the environment of a server and of all it starts: its value tells whose they are, whoever their parent is."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where POSIX puts shared memory on Linux
_MOMENT = 1.0
_KILLED = 5.0
_STUB = "triton_python_backend_stub"
_COMM = 15
"""Letters that the kernel keeps of a program's name (proc(5), comm)."""
_PROC = Path("/proc")
_GONE = -1
"""In place of the session of a process that is gone."""
_NVIDIA = ("_CUDA_", "LD_", "PYTHON", "OMPI_", "OPAL_", "PMIX_", "UCX_", "UCC_", "NCCL_", "TRITON", "TRT", "TLLM_", "TCMALLOC_")
"""Families of variables that NVIDIA's image sets for its programs and for what MPI starts."""
_VLLM = ("VLLM_", "TORCH", "TRITON_", "NCCL_", "FLASHINFER_", "XDG_CACHE_HOME")
"""Families of variables by which people set vLLM and what it compiles with."""
_VLLM_API_KEY = "VLLM_API_KEY"
_COMPILERS = ("CC", "CXX")
_SECRETS = frozenset(
    {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "FORGE_SIGN_PASSPHRASE", "COSIGN_PASSWORD"}
)
_KEPT = ("HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "PATH")
_KEPT_FAMILIES = ("LC_", "OMP_", "OPENBLAS_", "MKL_", "CUDA_", "NVIDIA_")


class Stub(Struct, frozen=True):
    """A process of Triton's Python backend, which runs one instance of a model. ``stopped``: by SIGSTOP, and nobody debugs it;
    ``cpu``: seconds of processor time that it has used, and each process that it has started, by pid."""

    pid: int
    stopped: bool
    cpu: Mapping[int, float]


def nvidia(environ: Mapping[str, str]) -> dict[str, str]:
    """What NVIDIA's image says to its programs, and to what MPI starts."""
    return {name: value for name, value in environ.items() if name.startswith(_NVIDIA)}


def vllm(environ: Mapping[str, str]) -> dict[str, str]:
    """What people say to vLLM and to the compilers that it runs; no key of theirs."""
    said = {name: value for name, value in environ.items() if name.startswith(_VLLM) or name in _COMPILERS}
    said.pop(_VLLM_API_KEY, None)
    return said


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """All but what forge itself alone is told, for programs that need a person's other settings: git, pip, uv, Python."""
    return {name: value for name, value in environ.items() if name not in _SECRETS}


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of the environment that a program may see: where things are and how many threads, no tokens."""
    return {name: value for name, value in environ.items() if name in _KEPT or name.startswith(_KEPT_FAMILIES)}


def beside_driver(environ: Mapping[str, str]) -> dict[str, str]:
    """The same for a program that asks NVIDIA's driver: clusters mount it where only LD_LIBRARY_PATH says."""
    return inherited(environ) | {name: environ[name] for name in ("LD_LIBRARY_PATH",) if name in environ}


def spare(count: int) -> tuple[int, ...]:
    """So many ports of the loopback that nobody listens on just now."""
    with ExitStack() as held:
        trials = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return tuple(int(trial.getsockname()[1]) for trial in trials)


def spare_ports() -> Ports:
    """Such ports for a server."""
    http, grpc, metrics = spare(3)
    return Ports(http, grpc, metrics)


def detached(
    argv: tuple[str, ...], environ: Mapping[str, str], log: Path, program: str = "", *, hears: int | None = None
) -> int:
    """Start a program in a session of its own, which says all into ``log``; its pid. OSError.

    ``program`` is its file, where ``argv`` calls it by another name. It reads from the descriptor ``hears``, or nothing.

    A terminal's Ctrl-C reaches forge alone, which then ends it in order.
    """
    return os.posix_spawn(
        program or argv[0],
        argv,
        dict(environ),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0) if hears is None else (os.POSIX_SPAWN_DUP2, hears, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=(signal.SIGINT, signal.SIGTERM),  # a shell's background job has SIGINT ignored, and children inherit that
    )


def started(pid: int) -> float | None:
    """Clock ticks since boot at which ``pid`` started; None when it is gone or only waits to be reaped.

    One that was killed is called a zombie (Z) as soon as its first thread is gone. While it has others it still holds its
    memory, a GPU's too: the count of threads (field 20 of proc(5)'s stat) says so.
    """
    stat = _stat(pid)
    return None if not stat or (stat[0] in "ZX" and int(stat[17]) <= 1) else float(stat[19])


def unreaped(pid: int) -> frozenset[int]:
    """The stubs of the Triton ``pid`` that have ended and that it has not looked at."""
    children = _children().get(pid, ())
    return frozenset(
        child
        for child in children
        if _stat(child)[:1] == ["Z"] and _read(child, "comm").decode(errors="replace").strip() == _STUB[:_COMM]
    )


def reap(pid: int) -> int | None:
    """Exit status of a child that has ended (negative: killed by that signal); None while it runs or is not ours."""
    with suppress(ChildProcessError):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
    return None


def kill_group(leader: int) -> None:
    """End a program that was started in a session of its own, with all that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def marked(marker: str) -> tuple[int, ...]:
    """Living processes that carry ``marker``: a server, its stubs, and orphans of either."""
    wanted = f"{MARKER}={marker}".encode()
    return tuple(pid for pid in _pids() if wanted in _read(pid, "environ").split(b"\0") and started(pid) is not None)


def stubs(marker: str) -> dict[str, list[Stub]]:
    """Model -> its living stubs, of the server whose shared-memory regions begin with ``marker``; containers' too, where their
    processes are seen from here. A stub's arguments are its model.py and its region's name, first of all."""
    found: dict[str, list[Stub]] = {}
    places: dict[int, Path] = {}
    for pid in _pids():
        words = _words(pid)
        named = len(words) >= 3 and words[0].endswith(_STUB) and words[2].startswith(marker)
        if named and len((place := Path(words[1])).parts) >= 3:
            places[pid] = place
    children = _children() if places else {}
    for pid, place in places.items():
        stat = _stat(pid)
        if stat and stat[0] not in "ZX":
            # vLLM and TensorRT-LLM's PyTorch path compute in processes that the stub has started.
            cpu = {one: _used(fields) for one in _below((pid,), children) if (fields := _stat(one))}
            found.setdefault(place.parts[-3], []).append(Stub(pid, stat[0] == "T", cpu))
    return found


def offspring(pids: Iterable[int]) -> frozenset[int]:
    """These processes and all that they have started, as far as that is still theirs."""
    return _below(pids, _children())


def spent(pid: int) -> dict[int, float]:
    """A process and all that it has started, by pid, with the seconds of a processor that each has used so far."""
    return {one: _used(fields) for one in offspring((pid,)) if (fields := _stat(one))}


def kill_stubs(marker: str, model: str) -> None:
    """End the stubs of a model, also those that do not move; ones of another user are left."""
    held = tuple(stub.pid for stub in stubs(marker).get(model, ()))
    for pid in held:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    _wait(held, _MOMENT)


def status(pid: int, ticks: float) -> int | None:
    """How a process ended that nobody has reaped yet (negative: killed by that signal); None where nobody knows."""
    stat = _stat(pid)
    if not stat or stat[0] != "Z" or float(stat[19]) != ticks:
        return None
    found = os.waitstatus_to_exitcode(int(stat[49]))
    reap(pid)
    return found


def stopped(pid: int) -> bool:
    """Whether a process stands still: by SIGSTOP, or a debugger."""
    return _stat(pid)[:1] in (["T"], ["t"])


def kill(pid: int, ticks: float) -> None:
    """End one process, unless it is this one or has its number only."""
    if pid and pid != os.getpid() and started(pid) == ticks:
        _send(pid, signal.SIGKILL)
        _wait((pid,), _KILLED)


def end(marker: str, patience: float, served: Callable[[], bool], spare: Iterable[int] = ()) -> None:
    """Ask the marked session leader to finish, wait, kill what is left, clear its shared memory. The sessions of ``spare``, and
    this process's own, are no part of it.

    It has ``patience`` seconds while requests are under way, and no more than a moment once all are ``served``: Triton takes
    1.2 s to unload each instance of a Python model, one after the other, and then sleeps out a count of whole seconds.
    """
    kept = frozenset((*spare, os.getsid(0)))
    found = tuple(pid for pid in marked(marker) if _session(pid) not in kept)
    leaders, sessions = tuple(pid for pid in found if _session(pid) == pid), _sessions(found)
    for pid in leaders:
        _send(pid, signal.SIGINT)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not set(_all(marker, sessions, kept)) <= set(leaders):
        _wait(leaders, 0.1)
        if served():
            deadline = min(deadline, time.monotonic() + _MOMENT)
            _wait(leaders, deadline - time.monotonic())
    # A stub can be between fork and exec while its parent dies: look again until none is found.
    while left := _all(marker, sessions, kept):
        for pid in left:
            _send(pid, signal.SIGKILL)
        _wait(left, _KILLED)
    for region in (each for name in (marker, f"sem.{marker}") for each in SHARED_MEMORY.glob(f"{name}*")):
        if region.is_dir():  # where vLLM's processes meet (forge.vllm.remains)
            shutil.rmtree(region, ignore_errors=True)
        else:
            with suppress(PermissionError):  # another user's, who knows the name out of the list of processes
                region.unlink(missing_ok=True)


def close_off(marker: str) -> None:
    """Let no other user open a server's shared memory, in which every prompt and answer stands.

    Boost gives it mode 0644 whatever the umask is (``fchmod`` in boost/interprocess/shared_memory_object.hpp).
    """
    for region in SHARED_MEMORY.glob(f"{marker}*"):
        with suppress(OSError), open(region, "rb", opener=_as_it_is) as opened:  # a folder is closed already
            os.fchmod(opened.fileno(), 0o600)


def _as_it_is(path: str, flags: int) -> int:
    """Open no file that another user's link leads to, and wait for no pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def free(host: str, port: int) -> bool:
    """Whether nobody else listens there."""
    error = refusal(host, port)
    return error is None or error.errno != errno.EADDRINUSE


def refusal(host: str, port: int) -> OSError | None:
    """Why a server could not listen there; None where it could. SO_REUSEADDR passes over connections that are only waiting to
    time out."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
            # gRPC listens with SO_REUSEPORT: only listening shows that nobody else does.
            trial.listen(1)
    except OSError as error:
        return error
    return None


def listener(port: int) -> int | None:
    """The process that listens on ``port``, where /proc lets us see it."""
    return next(iter(listeners(port) or ()), None)


def listeners(port: int) -> tuple[int, ...] | None:
    """The processes that listen on ``port``, as far as /proc lets us see them; None where nobody listens there."""
    sockets = set(_listening(port))
    return tuple(pid for pid in _pids() if not sockets.isdisjoint(_links(pid))) if sockets else None


def listens(pids: Iterable[int], port: int) -> bool:
    """Whether one of these listens on ``port``, as far as /proc lets us see: quicker than asking who does."""
    sockets = set(_listening(port))
    return any(not sockets.isdisjoint(_links(pid)) for pid in pids)


def program(pid: int) -> str:
    """The command line of ``pid`` up to its second word, for a person to recognise."""
    return " ".join(_words(pid)[:2]).strip()


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def _stat(pid: int) -> list[str]:
    """The fields of proc(5)'s stat after the name, state first; none of a process that is gone."""
    # The second field is the name in parentheses and may hold anything.
    return _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()


def _words(pid: int) -> list[str]:
    return _read(pid, "cmdline").decode(errors="replace").split("\0")


def _read(pid: int, name: str) -> bytes:
    """One of a process's files; nothing of one that is gone, or that is another user's."""
    with suppress(OSError):
        return (_PROC / str(pid) / name).read_bytes()
    return b""


def _used(stat: list[str]) -> float:
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for pid in _pids():
        if stat := _stat(pid):
            found.setdefault(int(stat[1]), []).append(pid)
    return found


def _below(pids: Iterable[int], children: Mapping[int, list[int]]) -> frozenset[int]:
    found: set[int] = set()
    left = list(pids)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, ())
    return frozenset(found)


def _sessions(pids: tuple[int, ...]) -> frozenset[int]:
    """The sessions of a server's processes, as far as they are its own: their leader is one of them, or gone."""
    found = {_session(pid) for pid in pids} - {_GONE}
    return frozenset(session for session in found if session in pids or started(session) is None)


def _session(pid: int) -> int:
    with suppress(ProcessLookupError):
        return os.getsid(pid)
    return _GONE


def _all(marker: str, sessions: frozenset[int], kept: frozenset[int]) -> tuple[int, ...]:
    """Those that carry ``marker``, and those that wrote over their environment: vLLM's call themselves by other names."""
    others = [pid for pid in _pids() if _session(pid) in sessions and started(pid) is not None] if sessions else []
    return tuple(pid for pid in {*marked(marker), *others} if _session(pid) not in kept)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait(pids: tuple[int, ...], seconds: float) -> None:
    began = {pid: started(pid) for pid in pids}
    deadline = time.monotonic() + seconds
    while any(tick is not None and started(pid) == tick for pid, tick in began.items()):
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)
    for pid in pids:
        reap(pid)


def _listening(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            # Local address in hex, state 0A is LISTEN, then the socket's inode (proc_net_tcp).
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{fields[9]}]"


def _links(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for entry in (_PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                yield os.readlink(entry)
