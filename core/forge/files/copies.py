"""Copies of files that somebody else may write to: by reflink where the filesystem can, else hashed as they are written."""

import errno
import fcntl
import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from blake3 import blake3
from msgspec import Struct

Moment = tuple[int, int, int, int, int]
"""(device, inode number, bytes, modified in ns, changed in ns). A program can set the time of modification back, and the time
of change not: while all five are as they were, nobody has written to the file."""

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_FICLONERANGE = 0x4020940D  # linux/fs.h: _IOW(0x94, 13, struct file_clone_range)
_RANGE = struct.Struct("qQQQ")  # source's descriptor, offset and length there, offset in the target
_SAMPLE = 1 << 20  # whole blocks of every filesystem that shares them
_PIECE = 4 * 1024 * 1024
_ROOM = 16 * 1024 * 1024
_THREADED = 8 * 1024 * 1024


class Copied(Struct, frozen=True):
    """A copy as it was made: its bytes, its hex blake3, and whether it shares blocks with its source until one is written."""

    size: int
    blake3: str
    shared: bool


class Cost(Struct, frozen=True):
    """Bytes of files, and those of them that a copy writes."""

    size: int
    written: int


def digest(path: Path, size: int) -> str:
    """Hex blake3 of the bytes of a file that has ``size`` of them. OSError."""
    return read_through(path, min(_ROOM, size + 1), blake3.AUTO if size >= _THREADED else 1)


def read_through(path: Path, room: int, threads: int = 1, after: Callable[[int], None] = lambda _: None) -> str:
    """The same in pieces of ``room`` bytes; ``after`` is told the bytes of each.

    Read and not mapped: where a disk cannot give a block that is an error, and with a map a signal that ends the process.
    """
    told, held = blake3(max_threads=threads), bytearray(room)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(held):
            told.update(memoryview(held)[:count])
            after(count)
    return told.hexdigest()


_copies: dict[Moment, str] = {}


def copied(status: os.stat_result) -> str:
    """Hex blake3 of a copy that this process made and that nobody has touched since; empty for any other file."""
    return _copies.get(moment(status), "")


def moment(status: os.stat_result) -> Moment:
    """What tells a file that was written to from one that was not."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def copy(source: Path, target: Path) -> Copied:
    """A file of its own with the bytes of ``source``, which somebody else may write to: blocks are shared, an inode never is.

    Reflink, which keeps what was there at that moment, else a copy that is hashed as it is written; in pieces, so that memory
    stays flat. It is readable, writable for its owner, and executable where ``source`` is for its own. FileExistsError where
    something is in the way; where the disk refuses, nothing is left.
    """
    made = blake3(max_threads=blake3.AUTO)
    shared = duplicate(source, target, made.update)
    try:
        target.chmod(0o755 if source.stat().st_mode & stat.S_IXUSR else 0o644)
        size = target.stat().st_size
        hexadecimal = digest(target, size) if shared else made.hexdigest()
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    _copies[moment(target.stat())] = hexadecimal
    return Copied(size, hexadecimal, shared)


def shares(source: Path, folder: Path) -> bool:
    """Whether a copy of ``source`` in ``folder`` (or where that will be) would share its blocks: tried, and nothing is left."""
    without_a_name = getattr(os, "O_TMPFILE", 0)  # Linux alone has it
    if not without_a_name:
        return False
    try:
        nameless = os.open(_there(folder), without_a_name | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        with source.open("rb", buffering=0) as old:
            whole = os.fstat(old.fileno()).st_size <= _SAMPLE
            fcntl.ioctl(nameless, _FICLONERANGE, _RANGE.pack(old.fileno(), 0, 0 if whole else _SAMPLE, 0))
    except OSError:
        return False
    finally:
        os.close(nameless)
    return True


def written(originals: Iterable[tuple[Path, int]], folder: Path) -> int:
    """Bytes that copies of ``originals`` (file, bytes) into ``folder`` would write: those of files that cannot share blocks.

    What is not there, or cannot be looked at, counts nothing.
    """
    able: dict[int, bool] = {}
    cost = 0
    for original, size in originals:
        try:
            device = original.stat().st_dev
        except OSError:
            continue
        if size and device not in able:
            able[device] = shares(original, folder)
        cost += 0 if able.get(device) else size
    return cost


def shortage(size: int, place: Path) -> str:
    """Why ``size`` bytes more do not go onto the disk at ``place``; empty where they do."""
    left = free(place)
    return f"the disk is full: {size:,} bytes are needed, {left:,} are free" if size > left else ""


def duplicate(source: Path, target: Path, told: Callable[[memoryview], object]) -> bool:
    """Make ``target`` a file with the bytes of ``source``, which ``told`` is given unless blocks are shared; says whether."""
    with source.open("rb", buffering=0) as old, target.open("xb", buffering=0) as new:
        try:
            if _reflink(old.fileno(), new.fileno()):
                return True
            piece = memoryview(bytearray(_PIECE))
            while count := old.readinto(piece):
                told(piece[:count])
                rest = piece[:count]
                while rest:
                    rest = rest[new.write(rest) :]
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return False


def free(place: Path) -> int:
    """Free bytes of the disk at ``place``, or where that will be."""
    return shutil.disk_usage(_there(place)).free


def _there(place: Path) -> Path:
    while not place.exists():
        place = place.parent
    return place


def _reflink(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            raise
        return False
    return True
