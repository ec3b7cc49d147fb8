"""One artifact on its way to a shared store, or from there: its files in parts, side by side, each verified by its digest."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from blake3 import blake3
from msgspec import Struct, field

from forge.errors import StoreError
from forge.events import Progress
from forge.files import copies
from forge.files.trees import Entry
from forge.remote import record
from forge.remote.lanes import LANES, each
from forge.remote.place import PART, Place
from forge.remote.record import Record, Rotten
from forge.store.artifact import LISTING, MANIFEST, TREE, Artifact

_EARLY = 2 * LANES
"""Parts of one file that wait in memory for those before them."""
_LEAST = 1 << 20
"""Bytes of a part of a file that has several: a record cannot cut one into so many that they fill memory."""


class Sent(Struct, frozen=True):
    """What a sending came to: the parts that its record states, all blobs with their sizes, and the bytes that went."""

    parts: Mapping[str, tuple[str, ...]]
    blobs: Mapping[str, int]
    sent: int


class Part(Struct, frozen=True):
    """``size`` bytes of a file from ``offset`` on; ``blob`` is where they lie, once that is known."""

    file: Entry
    number: int
    offset: int
    size: int
    blob: str = ""

    @property
    def is_whole(self) -> bool:
        return self.size == self.file.size


def send(held: Artifact, place: Place, progress: Progress, *, anew: bool) -> Sent:
    """Put all blobs of ``held`` that are not there.

    With ``anew`` nothing counts as there. StoreError where a file of the local store is not what was made.
    """
    parts = tuple(_parts(held.files()))
    total, done, sent = sum(part.size for part in parts), 0, 0
    found: dict[str, dict[int, str]] = {}
    blobs: dict[str, int] = {}

    def put(part: Part) -> tuple[Part, str, bool]:
        data = _bytes(held.path / part.file.path, part)
        if part.is_whole and blake3(data).hexdigest() != part.file.blake3:
            raise OSError(f"{held.path / part.file.path} is not what was made: run `forge cache verify`")
        blob = place.address(data, part.file.blake3 if part.is_whole else "")
        fresh = anew or not place.has(blob)
        if fresh:
            place.put(blob, data)
        return part, blob, fresh

    def heard(ended: tuple[Part, str, bool]) -> None:
        nonlocal done, sent
        part, blob, fresh = ended
        found.setdefault(part.file.blake3, {})[part.number] = blob
        blobs[blob] = part.size
        done += part.size
        sent += part.size if fresh else 0
        progress(done, total)

    each(parts, put, heard, place.patience)
    stated = {digest: tuple(blob for _, blob in sorted(numbered.items())) for digest, numbered in found.items()}
    return Sent({digest: one for digest, one in stated.items() if one != (digest,)}, blobs, sent)


def fetch(key: str, text: bytes, place: Place, into: Path, progress: Progress) -> Record:
    """Lay the artifact that record ``text`` tells of into the empty folder ``into``: tree, listing and manifest.

    Rotten where a file is missing there, or is not what its digest says.
    """
    told, _, files = record.decode(key, text)
    lay(told, files, place, into / TREE, progress)
    (into / LISTING).write_text(told.listing, encoding="utf-8")
    (into / MANIFEST).write_text(told.manifest, encoding="utf-8")
    return told


def lay(told: Record, files: Sequence[Entry], place: Place, tree: Path, progress: Progress) -> None:
    """Lay ``files`` of a record into the folder ``tree``; Rotten where one is missing there, or is not what its digest says.

    StoreError where the disk has no room for all of it.
    """
    total, done = sum(file.size for file in files), 0
    if short := copies.shortage(total, tree):
        raise StoreError(short, where=str(tree), hint="free space there, or run `forge cache gc`")
    parts = tuple(_stated(told, files))
    _folders(tree, files)
    whole = Whole(tree, {})

    def get(part: Part) -> int:
        try:
            data = memoryview(place.get(part.blob, part.size))
        except FileNotFoundError as error:
            raise Rotten(f"{part.file.path}: its bytes are missing there ({part.blob})") from error
        whole.write(part, data)
        return part.size

    def heard(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    whole.begin(parts)
    each(parts, get, heard, place.patience)
    _links(tree, files)


class _Digest(Struct):
    """The digest of one file whose parts come in whatever order: each is taken in when all before it were, while others still
    come. Few wait in memory; the rest are read again when it is their turn."""

    count: int
    hasher: Any = field(default_factory=blake3)
    next: int = 0
    early: dict[int, memoryview | None] = field(default_factory=dict[int, "memoryview | None"])
    busy: bool = False
    lock: Lock = field(default_factory=Lock)

    def take(self, part: Part, data: memoryview, file: Path, size: int) -> str:
        """The file's digest when this was the last that lacked; empty before. ``size`` is that of every part but the last."""
        with self.lock:
            self.early[part.number] = data if len(self.early) < _EARLY else None
            if self.busy:  # whoever takes in others finds this one
                return ""
            self.busy = True
        while True:
            with self.lock:
                if self.next not in self.early:
                    self.busy = False
                    return str(self.hasher.hexdigest()) if self.next == self.count else ""
                here = self.early.pop(self.next)
            self.hasher.update(_read(file, self.next * size, size) if here is None else here)
            self.next += 1


class Whole(Struct):
    """The files of a tree while their parts come in."""

    tree: Path
    digests: dict[str, _Digest]

    def begin(self, parts: Sequence[Part]) -> None:
        for path, count in Counter(part.file.path for part in parts).items():
            self.digests[path] = _Digest(count)
            if count > 1:
                (self.tree / path).touch(exist_ok=False)

    def write(self, part: Part, data: memoryview) -> None:
        """Take in one part; Rotten where its file is complete and not what was made."""
        file = self.tree / part.file.path
        if len(data) != part.size:
            raise Rotten(f"{part.file.path}: {part.size} bytes are {len(data)} there ({part.blob})")
        if part.is_whole:
            with file.open("xb") as stream:
                stream.write(data)
        else:
            with file.open("r+b", buffering=0) as stream:
                _write(stream.fileno(), data, part.offset)
        of_all = part.size if part.number == 0 else part.offset // part.number
        digest = self.digests[part.file.path].take(part, data, file, of_all)
        if not digest:
            return
        if digest != part.file.blake3:
            raise Rotten(
                f"{part.file.path}: its bytes are not what was made (blake3 {part.file.blake3[:16]}, there {digest[:16]})"
            )
        file.chmod(0o755 if part.file.executable else 0o644)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def _read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as stream:
        return os.pread(stream.fileno(), size, offset)


def _bytes(path: Path, part: Part) -> bytes:
    with path.open("rb", buffering=0) as stream:
        stream.seek(part.offset)
        data = stream.read(part.size)
    if len(data) != part.size:
        raise OSError(f"{path} is shorter than it was made: run `forge cache verify`")
    return data


def _parts(files: Sequence[Entry]) -> Iterator[Part]:
    """Every part of every distinct file."""
    seen: set[str] = set()
    for file in files:
        if file.kind == "file" and file.blake3 not in seen:
            seen.add(file.blake3)
            yield from (
                Part(file, number, offset, min(PART, file.size - offset))
                for number, offset in enumerate(range(0, file.size, PART))
            )


def _stated(told: Record, files: Sequence[Entry]) -> Iterator[Part]:
    """Every part of every file, and where it lies."""
    for file in files:
        if file.kind != "file":
            continue
        blobs = told.blobs(file)
        size = told.part if len(blobs) > 1 else file.size
        if file.size and not (len(blobs) - 1) * size < file.size <= len(blobs) * size:
            raise Rotten(f"{file.path}: {file.size} bytes cannot be {len(blobs)} parts")
        if size > PART or (len(blobs) > 1 and size < _LEAST):
            raise Rotten(f"{file.path}: parts of {size:,} bytes are none that forge sends")
        yield from (
            Part(file, number, number * size, min(size, file.size - number * size), blob) for number, blob in enumerate(blobs)
        )


def _folders(tree: Path, files: Sequence[Entry]) -> None:
    for file in files:
        place = tree / file.path
        (place if file.kind == "folder" else place.parent).mkdir(parents=True, exist_ok=True)
        if file.kind == "file" and not file.size:
            place.touch(exist_ok=False)
            place.chmod(0o755 if file.executable else 0o644)


def _links(tree: Path, files: Sequence[Entry]) -> None:
    """Links come last: nothing is written through one."""
    for file in files:
        if file.kind == "link":
            (tree / file.path).symlink_to(file.target)
