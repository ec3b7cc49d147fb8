"""Who uses which artifacts just now: running builds and servers."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct

from forge.files import locks, trees

_NOBODY = 0
_PATIENCE = 0.3  # seconds before a wait is worth a word


class _Claim(Struct, frozen=True):
    """Keys in use by the holder of the lock beside this file or, where ``pid`` is set, by that process."""

    keys: tuple[str, ...]
    pid: int = _NOBODY
    started: float = 0.0


class Claims:
    """A folder of claims. What is claimed is never collected; a claim ends with its process, however that ends."""

    def __init__(self, root: Path) -> None:
        self._claims = root / "claims"
        self._gate = root / "locks" / "claims"

    @contextmanager
    def gate(self) -> Generator[None]:
        """While it is held no claim begins: what is unclaimed now can be taken away now."""
        self._gate.parent.mkdir(parents=True, exist_ok=True)
        locks.require(self._gate.parent)
        with FileLock(self._gate):
            yield

    @contextmanager
    def using(self, keys: Iterable[str]) -> Generator[None]:
        """Claim ``keys`` for the length of the block. The kernel drops a killed process's lock, and so its claim."""
        note = self._note()
        lock = FileLock(note.with_suffix(".lock"))
        try:
            with self.gate():
                lock.acquire()
                trees.write_whole(note, _encode(_Claim(tuple(keys))))
            yield
        finally:
            note.unlink(missing_ok=True)
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def lend(self, keys: Iterable[str], pid: int, started: float) -> None:
        """Claim ``keys`` until process ``pid``, which began ``started`` clock ticks after boot, has ended."""
        note = self._note()
        with self.gate():
            trees.write_whole(note, _encode(_Claim(tuple(keys), pid, started)))

    def claimed(self) -> frozenset[str]:
        """Every key in use. To be called behind the gate; what dead processes left is removed."""
        keys: set[str] = set()
        for unfinished in self._claims.glob(".*"):
            unfinished.unlink(missing_ok=True)
        for note in _files(self._claims, ".json"):
            keys.update(self._live(note))
        for lock in _files(self._claims, ".lock"):
            if not lock.with_suffix(".json").exists():
                _drop(lock)
        return frozenset(keys)

    def _note(self) -> Path:
        self._claims.mkdir(parents=True, exist_ok=True)
        return self._claims / f"{uuid4().hex}.json"

    def _live(self, note: Path) -> tuple[str, ...]:
        """The keys of one claim; a dead one is removed."""
        try:
            claim = msgspec.json.decode(note.read_bytes(), type=_Claim)
        except FileNotFoundError:
            return ()
        except msgspec.DecodeError:
            claim = _Claim(())
        if claim.pid != _NOBODY:
            if began(claim.pid) == claim.started:
                return claim.keys
        elif not _drop(note.with_suffix(".lock")):
            return claim.keys
        note.unlink(missing_ok=True)
        return ()


@contextmanager
def alone(lock: Path, waiting: Callable[[], None]) -> Generator[None]:
    """Hold a lock in a ``with`` block. While another holds it ``waiting`` is told about every second, and can end the wait."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=_PATIENCE)
    except Timeout:
        while not held.is_locked:
            waiting()
            with suppress(Timeout):
                held.acquire(timeout=1.0, poll_interval=0.1)
    try:
        yield
    finally:
        held.release()


def began(pid: int) -> float | None:
    """When a process began, in clock ticks since boot (proc(5), stat, field 22); None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else float(fields[19])


def _drop(lock: Path) -> bool:
    """Remove a lock file that nobody holds; says whether it is gone. Behind the gate nobody is about to take it."""
    try:
        with FileLock(lock, timeout=0):
            lock.unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def _files(folder: Path, suffix: str = "") -> list[Path]:
    """Finished files of a folder; a name that begins with a dot is one being written."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.name.endswith(suffix) and not path.name.startswith(".")]


def _encode(claim: _Claim) -> str:
    return msgspec.json.encode(claim).decode()
