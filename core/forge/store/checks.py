"""When what is kept was last read again and found whole, and which published files were found rotten.

An artifact has an empty file beside its manifest whose time says when. Published files have notes in ``checked/`` and
``rotten/``, one of each for a repository: a note is advice, and one that is lost costs reading a file once more.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from blake3 import blake3
from msgspec import Struct

from forge.files import trees
from forge.store import artifact
from forge.store.artifact import Artifact, Damage

MARK = "checked"
"""Beside an artifact's manifest: modified when the artifact was last found whole."""
ROTTEN = "rotten"
T = TypeVar("T")


class Seen(Struct, frozen=True, array_like=True):
    """A published file as it was when its bytes were read and had the digest ``blake3``, at ``at`` (seconds since 1970)."""

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int
    blake3: str
    at: float

    @property
    def moment(self) -> tuple[int, ...]:
        """While it is the same, nobody has written to the file; rot is no writing, and does not show."""
        return self.size, self.mtime_ns, self.inode, self.ctime_ns

    def fits(self, other: "Seen") -> bool:
        """Whether this is still true of what should be there, the file being as ``other`` says now."""
        return self.moment == other.moment and self.blake3 == other.blake3


class Rot(Struct, frozen=True):
    """A published file that is not what was built. ``file`` is relative to ``repository``."""

    repository: str
    model: str
    file: str
    why: str
    found: float
    """Seconds since 1970."""
    moment: tuple[int, ...] = ()
    """Its bytes, times and inode then; empty for one that is missing."""

    def __str__(self) -> str:
        return f"{self.model}: {self.file}: {self.why}"


class Again(Struct, frozen=True):
    """Artifacts that were read again, of ``held`` in all. ``oldest`` is when the one that has waited longest was checked."""

    damages: tuple[Damage, ...]
    artifacts: int
    size: int
    held: int
    oldest: float


class Enough:
    """How much to read in one go: a share of all bytes that are held, or for some seconds; with neither, everything.

    Whoever asks goes on with one artifact at least, so that repeated calls come through.
    """

    def __init__(self, share: float = 0.0, seconds: float = 0.0, steady: Callable[[], float] = time.monotonic) -> None:
        self._share, self._seconds, self._steady = share, seconds, steady
        self._began = steady()

    def __call__(self, done: int, total: int) -> bool:
        """Whether it is enough after ``done`` of ``total`` bytes."""
        late = bool(self._seconds) and self._steady() - self._began >= self._seconds
        return late or (bool(self._share) and done >= self._share * total)


ALL = Enough()


def read_again(
    artifacts: Iterable[tuple[str, Artifact | None]], retire: Callable[[str], bool], now: float, enough: Enough = ALL
) -> Again:
    """Read artifacts (None: its manifest cannot be read), those first whose check is longest ago; the damaged are retired."""
    waiting = sorted(((checked(held), key, held) for key, held in artifacts), key=lambda each: each[:2])
    total = sum(held.size for _, _, held in waiting if held)
    damages: list[Damage] = []
    done = count = 0
    for _, key, held in waiting:
        if count and enough(done, total):
            break
        count, done = count + 1, done + (held.size if held else 0)
        problems = artifact.problems(held) if held else ("its manifest is damaged",)
        if problems and retire(key):
            damages.append(Damage(key, held.manifest.provenance.step if held else "", problems))
        elif held and not problems:
            mark(held)
    left = [at for at, _, _ in waiting[count:]]
    return Again(tuple(damages), count, done, len(waiting), min(left, default=now))


def checked(held: Artifact | None) -> float:
    """When it was last found whole, in seconds since 1970: each is when it is made."""
    if held is None:
        return 0.0
    try:
        return (held.path.parent / MARK).stat().st_mtime
    except OSError:
        return held.manifest.made_at


def mark(held: Artifact) -> None:
    """Note that it is whole now. A store that may only be read forgets it."""
    with suppress(OSError):
        (held.path.parent / MARK).touch()


def name(repository: Path | str) -> str:
    """The file of a repository's notes. ``forge.build.unchanged``, which may not import this, looks for one of that name."""
    return f"{blake3(str(repository).encode()).hexdigest()[:32]}.json"


class Checks:
    """The notes on published files, by repository."""

    def __init__(self, root: Path) -> None:
        """``root`` is the store's folder. Nothing is made on disk before the first note."""
        self._checked, self._rotten = root / MARK, root / ROTTEN

    def seen(self, repository: Path) -> dict[str, Seen]:
        """The files that were found whole, by path in the repository."""
        return _read(self._checked / name(repository), dict[str, Seen]) or {}

    def keep(self, repository: Path, seen: Mapping[str, Seen]) -> None:
        """Write what ``seen`` says now. A disk that refuses costs the note only."""
        _write(self._checked / name(repository), seen)

    def rotten(self, repository: Path) -> tuple[Rot, ...]:
        """What was found rotten and has not been fixed since."""
        return _read(self._rotten / name(repository), tuple[Rot, ...]) or ()

    def note(self, repository: Path, rotten: Iterable[Rot]) -> None:
        """Write what is rotten there now."""
        _write(self._rotten / name(repository), tuple(rotten))


def _read(file: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _write(file: Path, what: Mapping[str, Seen] | tuple[Rot, ...]) -> None:
    with suppress(OSError):
        if not what:
            file.unlink(missing_ok=True)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        trees.write_whole(file, msgspec.json.encode(what).decode())
