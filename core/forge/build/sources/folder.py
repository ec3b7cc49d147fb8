"""Checkpoints that already lie on this machine."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from forge.build.sources.checkpoint_files import digest, fault, selected, stated
from forge.build.sources.lookups import ROOM, checkpoint, recall, record, require_room
from forge.errors import SourceError, StoreError
from forge.events import Progress
from forge.files import copies, texts, trees
from forge.files.safetensors import PREFIX, Tensor, length, parse
from forge.schema.values import Calibration, Checkpoint, FileFact, Pinned, Source, SourceKind

SETTLED_NS = 2_000_000_000
"""A file that changed so shortly before it was read may change again without its time showing it."""


class Digested(NamedTuple):
    moment: copies.Moment
    digest: str


class Digests:
    """blake3 of local files, remembered under ``home``: a second look at 15 GB does not read them again.

    A memory of digests, no key: one counts only while the file is what it was, down to the time of its last change, which no
    program can set back. What is brought is hashed as it is copied, whatever is remembered. ``clock`` is in ns since 1970.
    """

    def __init__(self, home: Path, clock: Callable[[], int] = time.time_ns) -> None:
        self._folder = home / "digests"
        self._clock = clock

    def of(self, path: Path) -> str:
        return self.fact(path, "").digest

    def fact(self, path: Path, name: str) -> FileFact:
        """``name`` with size and digest; SourceError where somebody is writing the file just now."""
        begun, before = self._clock(), path.stat()
        seen = copies.moment(before)
        question = os.fsencode(path.resolve())
        held = recall(self._folder, question, Digested)
        if held and held.moment == seen:
            return FileFact(name, before.st_size, held.digest)
        made, after = digest(path, "blake3"), path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            hint = "run again when whoever writes it has finished"
            raise SourceError("it changed while it was read", where=str(path), hint=hint)
        if begun - max(before.st_mtime_ns, before.st_ctime_ns) > SETTLED_NS and seen == copies.moment(after):
            record(self._folder, question, Digested(seen, made))
        return FileFact(name, before.st_size, made)

    def bring(self, originals: Iterable[tuple[Path, FileFact]], into: Path, progress: Progress) -> None:
        """Lay copies of local files into ``into``; SourceError for one that is not, or no longer, what its fact says.

        None of them shares an inode with its original: whoever writes to that changes nothing here, and the other way round.
        """
        files = tuple(originals)
        total, done = sum(fact.size for _, fact in files), 0
        require_room(self.cost(files, into).written, into)
        for original, fact in files:
            _take(original, fact, into)
            progress(done := done + fact.size, total)

    def cost(self, originals: Iterable[tuple[Path, FileFact]], into: Path) -> copies.Cost:
        """What ``bring`` would write; of a file that is gone it says so itself."""
        files = [(original, fact.size) for original, fact in originals]
        return copies.Cost(sum(size for _, size in files), copies.written(files, into))


class FolderOrigin:
    """A folder in Hugging Face's layout. The user's files are read, never changed, and never shared by inode."""

    def __init__(self, home: Path) -> None:
        self._digests = Digests(home)

    def pin(self, source: Source, base: Path) -> Pinned:
        folder = (base / Path(source.address).expanduser()).resolve()
        if not folder.is_dir():
            hint = 'a single file is a `gguf = "FILE"` source' if folder.is_file() else "paths start at the recipe's folder"
            raise SourceError("there is no such folder", where=str(folder), hint=hint)
        names = selected(source, _names(folder, deep=isinstance(source, Calibration)), str(folder))
        try:
            for name in names:
                if wrong := fault(folder / name):
                    raise SourceError(wrong, where=str(folder / name), hint="bring the whole file, then run again")
            files = tuple(self._digests.fact(folder / name, name) for name in names)
        except OSError as error:
            what, hint = f"this file of the checkpoint cannot be read: {error.strerror}", "fix its permissions, or the disk"
            raise SourceError(what, where=str(error.filename or folder), hint=hint) from error
        return Pinned(SourceKind.PATH, folder.name, "", files, str(folder))

    def read(self, pinned: Pinned) -> Checkpoint:
        config = Path(pinned.location) / stated(pinned).path
        return checkpoint(texts.read(config, SourceError).encode(), str(config))

    def tensors(self, pinned: Pinned) -> tuple[Tensor, ...]:
        return headers(Path(pinned.location), (file.path for file in pinned.files))

    def fetch(self, pinned: Pinned, into: Path, progress: Progress) -> None:
        self._digests.bring(_originals(pinned), into, progress)

    def cost(self, pinned: Pinned, into: Path) -> copies.Cost:
        """What a fetch into ``into`` would write; files whose blocks can be shared (reflink) count nothing."""
        return self._digests.cost(_originals(pinned), into)


def _originals(pinned: Pinned) -> Iterator[tuple[Path, FileFact]]:
    for fact in pinned.files:
        yield Path(pinned.location) / fact.path, fact


def _take(original: Path, fact: FileFact, into: Path) -> None:
    target = into / fact.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = copies.copy(original, target) if original.is_file() else None
    except OSError as error:
        what = f"cannot take {fact.path}: {trees.reason(error, into)}"
        raise StoreError(what, where=str(into), hint=ROOM) from error
    if made is None or (made.size, f"blake3:{made.blake3}") != (fact.size, fact.digest):
        target.unlink(missing_ok=True)
        what, hint = f"{fact.path} changed since it was pinned", "run again; leave it alone meanwhile"
        raise SourceError(what, where=str(original), hint=hint)


def _names(folder: Path, *, deep: bool) -> Iterator[str]:
    """Files by their path inside ``folder``; ``deep`` for those in subfolders too."""
    for entry in folder.rglob("*") if deep else folder.iterdir():
        if entry.is_file():
            yield entry.relative_to(folder).as_posix()


def headers(folder: Path, names: Iterable[str]) -> tuple[Tensor, ...]:
    """The tensors of those of ``names`` that are safetensors, by their headers; SourceError where one has none."""
    found: list[Tensor] = []
    for name in sorted(names):
        if not name.endswith(".safetensors"):
            continue
        try:
            with (folder / name).open("rb") as file:
                found += parse(file.read(length(file.read(PREFIX))))
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}", where=str(folder / name)) from error
        except ValueError as error:
            raise SourceError(str(error), where=str(folder / name), hint="bring the whole file, then run again") from error
    return tuple(found)
