"""Checkpoints that already lie on this machine."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from forge import trees
from forge.adapters import tensors
from forge.adapters.records import checkpoint, recall, record
from forge.adapters.weights import check, digest, fault, selected
from forge.errors import SourceError, StoreError
from forge.headers import Tensor
from forge.model import Calibration, Checkpoint, FileFact, Pinned, Source, SourceKind
from forge.ports import Progress

FICLONE = 0x40049409
"""Linux's ioctl that lets two files share their blocks until one is written to (btrfs, xfs)."""
SETTLED_NS = 2_000_000_000
"""A file that changed so shortly before it was read may change again without its time showing it."""


class Digested(NamedTuple):
    size: int
    mtime_ns: int
    inode: int
    digest: str


class Digests:
    """blake3 of local files, remembered under ``home``: a second look at 15 GB does not read them again.

    A memory of digests, no key: one counts only while path, size, time and inode are what they were.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "digests"

    def of(self, path: Path) -> str:
        seen = path.stat()
        question = os.fsencode(path.resolve())
        held = recall(self._folder, question, Digested)
        if held and held[:3] == (seen.st_size, seen.st_mtime_ns, seen.st_ino):
            return held.digest
        begun = time.time_ns()
        made = digest(path, "blake3")
        if begun - seen.st_mtime_ns > SETTLED_NS:
            record(self._folder, question, Digested(seen.st_size, seen.st_mtime_ns, seen.st_ino, made))
        return made

    def fact(self, path: Path, name: str) -> FileFact:
        return FileFact(name, path.stat().st_size, self.of(path))

    def bring(self, original: Path, fact: FileFact, into: Path) -> None:
        """Lay a local file into ``into``, sharing its bytes where the filesystem can; SourceError if it changed."""
        if not original.is_file() or self.fact(original, fact.path) != fact:
            raise SourceError(
                f"{fact.path} changed since it was pinned",
                where=str(original),
                hint="run again; leave it alone meanwhile",
            )
        target = into / fact.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not (_reflinked(original, target) or _linked(original, target)):
                shutil.copyfile(original, target)
                check(target, fact, str(original))
        except OSError as error:
            what = f"cannot take {fact.path}: {trees.reason(error, into)}"
            raise StoreError(what, where=str(into), hint="free space there, or run `forge cache gc`") from error


class FolderOrigin:
    """A folder in Hugging Face's layout. The user's files are read and linked, never changed."""

    def __init__(self, home: Path) -> None:
        self._digests = Digests(home)

    def pin(self, source: Source, base: Path) -> Pinned:
        folder = (base / Path(source.address).expanduser()).resolve()
        if not folder.is_dir():
            hint = 'a single file is a `gguf = "FILE"` source' if folder.is_file() else "paths start at the recipe's folder"
            raise SourceError("there is no such folder", where=str(folder), hint=hint)
        names = selected(source, _names(folder, deep=isinstance(source, Calibration)), str(folder))
        for name in names:
            if wrong := fault(folder / name):
                raise SourceError(wrong, where=str(folder / name), hint="bring the whole file, then run again")
        files = tuple(self._digests.fact(folder / name, name) for name in names)
        return Pinned(SourceKind.PATH, folder.name, "", files, str(folder))

    def read(self, pinned: Pinned) -> Checkpoint:
        config = Path(pinned.location) / "config.json"
        return checkpoint(_bytes(config), str(config))

    def tensors(self, pinned: Pinned) -> tuple[Tensor, ...]:
        return tensors.local(Path(pinned.location), (file.path for file in pinned.files))

    def fetch(self, pinned: Pinned, into: Path, progress: Progress) -> None:
        total, done = sum(file.size for file in pinned.files), 0
        for fact in pinned.files:
            self._digests.bring(Path(pinned.location) / fact.path, fact, into)
            progress(done := done + fact.size, total)


def _names(folder: Path, *, deep: bool) -> Iterator[str]:
    """Files by their path inside ``folder``; ``deep`` for those in subfolders too."""
    for entry in folder.rglob("*") if deep else folder.iterdir():
        if entry.is_file():
            yield entry.relative_to(folder).as_posix()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _reflinked(original: Path, target: Path) -> bool:
    try:
        with original.open("rb") as source, target.open("xb") as copy:
            fcntl.ioctl(copy.fileno(), FICLONE, source.fileno())
    except OSError:  # another filesystem, or one that cannot
        target.unlink(missing_ok=True)
        return False
    return True


def _linked(original: Path, target: Path) -> bool:
    try:
        os.link(original.resolve(), target)
    except OSError:  # another filesystem, or one that forbids it
        return False
    return True
