"""One file as the place of a shared store: a tar that is written once from its beginning to its end, and read from anywhere.

``files/<aa>/<blake3>`` are blobs and ``keys/<aa>/<key>`` records, as in an object store; ``bundle.json`` comes last and says
what all of it is. Who reads one trusts nobody: a member that forge would not have written, or a size that it would not have,
is refused before a byte of it is looked at.
"""

import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO
from uuid import uuid4

from blake3 import blake3 as hashed

from forge.errors import StoreError
from forge.files import trees
from forge.remote.place import PART, RECORD, Data, Written, sharded

CONTENTS = "bundle.json"
_BLOCK = tarfile.BLOCKSIZE
_BLOB = re.compile(r"files/([0-9a-f]{2})/(\1[0-9a-f]{62})\Z")
_RECORD = re.compile(r"keys/([A-Za-z0-9_-]{2})/(\1[A-Za-z0-9_-]{1,126})\Z")
_PATIENCE = 3600.0
"""Seconds for one part from a disk, which may be a slow one on a network."""
_HINT = "copy it again from where it was made, or make it again with `forge bundle`"


class BundleError(StoreError):
    """A bundle cannot be made, or is not one, or not whole."""


def damaged(what: str, file: Path) -> BundleError:
    """The refusal of a bundle that is not as it was written."""
    return BundleError(f"this bundle is damaged: {what}", where=str(file), hint=_HINT)


class _Tar:
    """What reading and writing have in common as a ``forge.remote.place.Place``."""

    patience = _PATIENCE

    def __init__(self, file: Path) -> None:
        self.name = str(file)
        self._file = file

    def address(self, data: Data, blake3: str) -> str:
        return blake3 or hashed(data).hexdigest()

    def used(self, key: str) -> None:
        """A bundle notes nothing of that."""

    def drop(self, keys: Iterable[str]) -> None:
        if list(keys):
            raise BundleError("nothing is taken out of a bundle", where=self.name, hint="make another with `forge bundle`")

    def sweep(self, kept: frozenset[str], before: float, *, dry_run: bool) -> int:  # noqa: ARG002 - a bundle has what it has
        return 0


class Packing(_Tar):
    """A bundle that is being written; whoever looks under its name sees it whole or not at all.

    It has no name before, where the filesystem can: whoever kills its writer finds nothing of it.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._unfinished = file.with_name(f".{file.name}.{uuid4().hex}")
        self._lock = Lock()
        self._names: set[str] = set()
        self._records: dict[str, bytes] = {}
        self._stream: BinaryIO = _nameless(self._unfinished) or self._unfinished.open("xb")

    def has(self, blob: str) -> bool:
        return sharded("files", blob) in self._names

    def put(self, blob: str, data: Data) -> None:
        self._append(sharded("files", blob), data)

    def get(self, blob: str, size: int) -> Data:  # noqa: ARG002 - it is not read while it is written
        raise FileNotFoundError(blob)

    def has_record(self, key: str) -> bool:
        return key in self._records

    def record(self, key: str) -> bytes | None:
        return self._records.get(key)

    def write(self, key: str, record: bytes, blobs: Mapping[str, int], *, anew: bool) -> bool:  # noqa: ARG002 - a registry names them
        self._append(sharded("keys", key), record)
        self._records[key] = record
        return True

    def records(self) -> Iterator[Written]:
        return (Written(key, 0.0) for key in self._records)

    def digests(self) -> dict[str, str]:
        """Key -> hex blake3 of its record."""
        return {key: hashed(record).hexdigest() for key, record in self._records.items()}

    def publish(self, contents: bytes) -> int:
        """Write ``contents`` as the last member, and give the file its name; its bytes."""
        self._append(CONTENTS, contents)
        with self._stream:
            self._stream.write(bytes(2 * _BLOCK))
            self._stream.flush()
            os.fsync(self._stream.fileno())
            size = self._stream.tell()
            if not self._unfinished.exists():
                _give(self._stream, self._unfinished)
        self._unfinished.replace(self._file)
        trees.flush_one(self._file.parent)
        return size

    def discard(self) -> None:
        """Leave nothing of what was not published."""
        with suppress(OSError):
            self._stream.close()
        self._unfinished.unlink(missing_ok=True)

    def _append(self, name: str, data: Data) -> None:
        head = tarfile.TarInfo(name)
        head.size, head.mode = len(data), 0o644
        with self._lock:
            if name in self._names:
                return
            self._names.add(name)
            self._stream.write(head.tobuf(tarfile.USTAR_FORMAT))
            self._stream.write(data)
            self._stream.write(bytes(-len(data) % _BLOCK))


class Packed(_Tar):
    """A bundle that is read. ``contents`` is the text of its last member; blobs are read where they stand, by any thread."""

    def __init__(self, file: Path) -> None:
        """BundleError where it is none, or not whole: looked at are all members' places, and the last one's bytes."""
        super().__init__(file)
        try:
            self._descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise BundleError(f"it cannot be read: {error.strerror}", where=str(file), hint="name a bundle's file") from error
        self._places: dict[str, tuple[int, int]] = {}
        self._stated: Mapping[str, str] = {}
        try:
            self._look()
            self.contents = self._read(CONTENTS) or b""
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._descriptor).st_size

    def has(self, blob: str) -> bool:
        return sharded("files", blob) in self._places

    def put(self, blob: str, data: Data) -> None:  # noqa: ARG002
        raise BundleError("nothing is put into a bundle that is there", where=self.name)

    def get(self, blob: str, size: int) -> Data:  # noqa: ARG002 - a registry wants to know
        found = self._read(sharded("files", blob))
        if found is None:
            raise FileNotFoundError(blob)
        return found

    def part(self, blob: str) -> bytes:
        """A blob by itself, held to its name; BundleError where it is not what was written."""
        found = self._read(sharded("files", blob))
        if found is None or hashed(found).hexdigest() != blob:
            raise damaged(f"a part is {'missing' if found is None else 'not what was written'} ({blob[:16]})", self._file)
        return found

    def sizes(self, blobs: Iterable[str]) -> int:
        """Bytes of ``blobs``."""
        return sum(self._places.get(sharded("files", blob), (0, 0))[1] for blob in blobs)

    def has_record(self, key: str) -> bool:
        return sharded("keys", key) in self._places

    def record(self, key: str) -> bytes | None:
        found = self._read(sharded("keys", key))
        if found is not None and key in self._stated and hashed(found).hexdigest() != self._stated[key]:
            raise damaged(f"the record of {key[:12]} is not as it was written", self._file)
        return found

    def hold(self, stated: Mapping[str, str]) -> None:
        """Hold every record to its hex blake3 from now on, each time that it is read."""
        self._stated = stated
        for key in stated:
            self.record(key)

    def write(self, key: str, record: bytes, blobs: Mapping[str, int], *, anew: bool) -> bool:  # noqa: ARG002
        raise BundleError("nothing is written into a bundle that is there", where=self.name)

    def records(self) -> Iterator[Written]:
        return (Written(name.rpartition("/")[2], 0.0) for name in self._places if name.startswith("keys/"))

    # -- inside

    def _read(self, name: str) -> bytes | None:
        if name not in self._places:
            return None
        offset, size = self._places[name]
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise damaged(f"{name} ends early", self._file)
        return data

    def _look(self) -> None:
        """Every member's place; refused is what forge has not written."""
        end, offset = self.size, 0
        while CONTENTS not in self._places:
            block = os.pread(self._descriptor, _BLOCK, offset)
            if len(block) < _BLOCK:
                raise self._odd(f"it ends after {end:,} bytes, before it says what it holds")
            name, size = self._member(block)
            if name in self._places:
                raise self._odd(f"{name} is there twice")
            offset += _BLOCK
            if offset + size > end:
                raise self._odd(f"it ends after {end:,} bytes, within {name}")
            self._places[name] = offset, size
            offset += size + -size % _BLOCK
        if end != offset + 2 * _BLOCK or os.pread(self._descriptor, 2 * _BLOCK, offset).strip(b"\0"):
            raise self._odd("it does not end where it says")

    def _member(self, block: bytes) -> tuple[str, int]:
        try:
            head = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise self._odd(f"no member begins where one should ({error})") from error
        if head.type != tarfile.REGTYPE:
            raise self._odd(f"{head.name!a} is no plain file")
        most = PART if _BLOB.match(head.name) else RECORD if head.name == CONTENTS or _RECORD.match(head.name) else -1
        if not 0 <= head.size <= most:
            why = "is none that forge writes" if most < 0 else f"has {head.size:,} bytes, and {most:,} are the most"
            raise self._odd(f"the member {head.name!a} {why}")
        return head.name, head.size

    def _odd(self, what: str) -> BundleError:
        if not self._places:
            return BundleError(f"this is no bundle of forge's: {what}", where=self.name, hint="`forge bundle` makes one")
        return damaged(what, self._file)


def _nameless(aside: Path) -> BinaryIO | None:
    """A file that has no name yet and can be given one, as ``aside`` is here for a moment; None where that cannot be.

    Tried is another such file: it would be too late to learn it after hours of writing.
    """
    if not getattr(os, "O_TMPFILE", 0):  # Linux alone has it
        return None
    try:
        with os.fdopen(_unnamed(aside.parent), "wb") as trial:
            _give(trial, aside)
            aside.unlink()
        return os.fdopen(_unnamed(aside.parent), "wb")
    except OSError:
        return None


def _unnamed(folder: Path) -> int:
    return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644)


def _give(stream: BinaryIO, name: Path) -> None:
    """Give an open file without a name one."""
    ours = stream.fileno()
    # The folder is of no matter for a whole path; without one Python asks the kernel not to follow the link.
    os.link(f"/proc/self/fd/{ours}", name, src_dir_fd=ours, follow_symlinks=True)


def replaceable(file: Path) -> bool:
    """Whether a new bundle may take this name: nothing stands there, or another bundle."""
    try:
        with file.open("rb") as stream:
            head = tarfile.TarInfo.frombuf(stream.read(_BLOCK), "ascii", "strict")
    except FileNotFoundError:
        return True
    except (OSError, tarfile.HeaderError, ValueError):
        return False
    return head.name == CONTENTS or bool(_BLOB.match(head.name) or _RECORD.match(head.name))


def parts(stream: Iterable[bytes], keep: Callable[[bytes], str]) -> tuple[str, ...]:
    """A stream of unknown length as parts that ``keep`` takes and names; one part is in memory at a time."""
    names: list[str] = []
    held = bytearray()
    for piece in stream:
        held += piece
        while len(held) >= PART:
            names.append(keep(bytes(held[:PART])))
            del held[:PART]
    if held:
        names.append(keep(bytes(held)))
    return tuple(names)
