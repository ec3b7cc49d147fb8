"""Folders as forge keeps them: surveyed file by file, frozen, flushed to disk, laid elsewhere by links, removed."""

import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Literal
from uuid import uuid4

from msgspec import Struct

from forge.errors import ForgeError, StoreError
from forge.files import copies

Inode = tuple[int, int]
"""(device, inode number)."""
_MANY = 64  # from here on one flush of the filesystem is quicker than one of each file

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}

_ROOM = 2**20
"""Bytes free on a disk from which on it was hardly that one which refused a file that nobody names."""
_FIX = "free space there (`forge cache gc` removes what nothing uses), or set FORGE_HOME to a place that can be written"
ELSEWHERE = "no folder can be made there: set FORGE_HOME to another place"


class Unkeepable(ValueError):  # noqa: N818 - says what the thing is
    """Something in a tree that cannot be kept and given back as it was."""


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing in a tree: a file with size and hex blake3, a symbolic link with its target, or an empty folder."""

    path: str
    """Relative, with forward slashes."""
    kind: Literal["file", "link", "folder"] = "file"
    size: int = 0
    blake3: str = ""
    executable: bool = False
    target: str = ""


class Laid(Struct, frozen=True):
    """How a tree came to its new place, in bytes: ``linked`` share their blocks with the source, ``copied`` do not."""

    linked: int = 0
    copied: int = 0

    def __add__(self, other: "Laid") -> "Laid":
        return Laid(self.linked + other.linked, self.copied + other.copied)


class Found(Struct, frozen=True):
    """One thing met on a walk; ``bare`` is a folder with nothing in it."""

    relative: str
    path: Path
    status: os.stat_result
    bare: bool = False

    @property
    def inode(self) -> Inode:
        return self.status.st_dev, self.status.st_ino

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.status.st_mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)


def walk(tree: Path, below: str = "") -> Iterator[Found]:
    """Everything in ``tree`` by name, folders before what they hold; links are not followed."""
    with os.scandir(tree / below) as listing:
        names = sorted(entry.name for entry in listing)
    for name in names:
        relative = f"{below}/{name}" if below else name
        path = tree / relative
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            inner = walk(tree, relative)
            first = next(inner, None)
            yield Found(relative, path, status, bare=first is None)
            if first:
                yield first
                yield from inner
        else:
            yield Found(relative, path, status)


def surveyed(tree: Path, known: Mapping[Inode, str]) -> Iterator[Entry]:
    """Every file, link and empty folder of ``tree``, by path. A file whose inode is ``known`` is not read again.

    Unkeepable: sockets, devices, names that are not UTF-8.
    """
    for found in walk(tree):
        if not _is_utf8(found.relative):
            raise Unkeepable(f"the name {os.fsencode(found.relative)!r} is not UTF-8")
        if found.is_folder:
            if found.bare:
                yield Entry(path=found.relative, kind="folder")
        elif found.is_link:
            yield Entry(path=found.relative, kind="link", target=os.readlink(found.path))
        elif found.is_file:
            size = found.status.st_size
            yield Entry(
                path=found.relative,
                size=size,
                blake3=known.get(found.inode) or copies.digest(found.path, size),
                executable=bool(found.status.st_mode & stat.S_IXUSR),
            )
        else:
            raise Unkeepable(f"{found.relative} is neither a file, a folder nor a link")


def size_below(*folders: Path) -> int:
    """Bytes of the files under ``folders``, each once however many names it has there, and unfinished ones among them; what
    vanishes while we look is passed over."""
    sizes: dict[Inode, int] = {}
    for place, _, files in (each for folder in folders for each in os.walk(folder)):  # pathlib's raise where one is gone
        for name in files:
            with suppress(OSError):
                found = os.lstat(os.path.join(place, name))
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def freeze(tree: Path) -> None:
    """Let everybody read ``tree`` and all in it, and nobody write. What its owner may execute, everybody may.

    Whoever serves it need not be who made it: a container's user, another account. What keeps others out is the folder above.
    """
    for item in walk(tree):
        if item.is_folder or item.is_file:
            _set_mode(item.path, item.status.st_mode, 0o444)
    _set_mode(tree, tree.stat().st_mode, 0o444)


def flush(tree: Path) -> None:
    """Return when everything in ``tree`` is on disk, names and all."""
    found = list(islice((item.path for item in walk(tree) if not item.is_link), _MANY + 1))
    libc = ctypes.CDLL(None, use_errno=True)
    if len(found) > _MANY and hasattr(libc, "syncfs"):
        with _opened(tree) as descriptor:
            if libc.syncfs(descriptor):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(tree))
        return
    for path in found if len(found) <= _MANY else (item.path for item in walk(tree) if not item.is_link):
        flush_one(path)
    flush_one(tree)


def flush_one(path: Path) -> None:
    """Return when this file's bytes, or this folder's names, are on disk."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


def write_whole(path: Path, text: str, aside: Path | None = None) -> None:
    """Put ``text`` at ``path`` so that a reader sees the old text or the new one, also after a power cut.

    A file that is there keeps its mode. It is written where a link at ``path`` leads; with ``aside``, for what lies in folders
    of forge's own, the link itself gives way. A writer that is killed leaves a file whose name begins with a dot in ``aside``,
    by default beside what is written. OSError names ``path``.
    """
    if aside is None and path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")  # a device or a pipe takes it as it comes; a folder says what it is
        return
    target = path if aside is not None else Path(os.path.realpath(path))
    fresh = (aside or target.parent) / f".{target.name}.{uuid4().hex}"
    try:
        mode = _mode(target)
        bits = 0o666 if mode is None else mode
        with open(fresh, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, bits)) as stream:
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(target)
    except BaseException as error:
        fresh.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(fresh):
            error.filename, error.filename2 = str(path), None
        raise
    flush_one(target.parent)


def remove(path: Path) -> None:
    """Remove a tree, frozen or not. Another process removing it at the same time is no error."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        for folder in [path, *(item.path for item in walk(path) if item.is_folder)]:
            with suppress(PermissionError):  # another's folder: rmtree below says so if it matters
                folder.chmod(folder.stat().st_mode | stat.S_IRWXU)
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def lay(source: Path, target: Path, leave: frozenset[str] = frozenset()) -> Laid:
    """Make ``target`` hold what ``source`` holds, sharing blocks: hard link, else reflink, else copy.

    ``target``'s folders are new, writable for their owner, and otherwise open as the source's are; its parent must exist.
    Paths in ``leave`` (relative, forward slashes) are not laid: they are the caller's to write anew. FileExistsError where a
    file is in the way.
    """
    if not stat.S_ISDIR(source.lstat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(source))
    _open_folder(target, source.stat())
    laid = Laid()
    for item in walk(source):
        place = target / item.relative
        if item.relative in leave:
            continue
        if item.is_folder:
            _open_folder(place, item.status)
        elif item.is_link:
            place.symlink_to(os.readlink(item.path))
        else:
            laid += link(item.path, place)
    return laid


def exchange(one: Path, other: Path) -> bool:
    """Have two things change places at once; False, and nothing done, where the kernel or the filesystem cannot. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    sys.audit("os.rename", one, other, -1, -1)  # as any other rename tells of itself
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    failure = ctypes.get_errno()
    if failure in _NO_EXCHANGE:
        return False
    raise OSError(failure, os.strerror(failure), str(other))


def link(source: Path, target: Path) -> Laid:
    """One file of forge's own at a new place, sharing its blocks where the filesystem can."""
    size = source.stat().st_size
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    else:
        return Laid(linked=size)
    shared = copies.duplicate(source, target, lambda _: None)
    shutil.copymode(source, target)
    return Laid(linked=size) if shared else Laid(copied=size)


def writers(folder: Path) -> str:
    """Who else may write to ``folder``, as words after "may be written to by"; empty where nobody may, or it is not there.

    Root may anyhow, and a group of its owner's own name is nobody else: where each user has one, folders are open to it.
    """
    import grp
    import pwd

    try:
        found = folder.stat()
    except OSError:
        return ""
    owner, group = str(found.st_uid), str(found.st_gid)
    with suppress(KeyError):  # a number without a name, in containers
        owner = pwd.getpwuid(found.st_uid).pw_name
    with suppress(KeyError):
        group = grp.getgrgid(found.st_gid).gr_name
    if os.geteuid() not in (0, found.st_uid) and found.st_uid:
        return f"{owner}, whose it is"
    if found.st_mode & stat.S_IWOTH:
        return "everybody"
    return f"the group {group}" if found.st_mode & stat.S_IWGRP and group != owner else ""


def refusal(error: OSError, home: Path) -> ForgeError:
    """What the system refused, as forge says it: StoreError where the store's own folder, ``home``, could not be written."""
    named = Path(str(error.filename)) if error.filename else None
    ours = named is not None and (named == home or home in named.parents or named in home.parents)
    full = error.errno in _FULL and named is None and copies.free(home) < _ROOM
    if ours or full:
        unmade = not home.is_dir() and error.errno not in _FULL
        what = f"forge's home folder (FORGE_HOME) cannot be {'made' if unmade else 'written'}: {reason(error, home)}"
        return StoreError(what, where=str(named or home), hint=ELSEWHERE if unmade else _FIX)
    return ForgeError(error.strerror or str(error), where=str(named or ""))


def reason(error: OSError, place: Path) -> str:
    """Why the disk at ``place`` refused, in words a person can act on."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"the disk is full ({copies.free(place) / 1e6:,.1f} MB free there)"
        case errno.EFBIG:
            return f"a file is larger than this system allows ({copies.free(place) / 1e6:,.1f} MB free there)"
        case errno.EROFS:
            return "the disk is mounted read-only"
        case errno.EACCES | errno.EPERM:
            return f"no permission for {error.filename or place}"
        case _:
            return f"{error.strerror or error} ({error.filename or place})"


@contextmanager
def _opened(path: Path) -> Generator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _mode(file: Path) -> int | None:
    """Who may read and write a file that is there."""
    try:
        return stat.S_IMODE(file.lstat().st_mode) & 0o777 if not file.is_symlink() else None
    except FileNotFoundError:
        return None


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _open_folder(place: Path, like: os.stat_result) -> None:
    place.mkdir(exist_ok=True)
    place.chmod(stat.S_IMODE(like.st_mode) | stat.S_IRWXU)


def _set_mode(path: Path, before: int, bits: int) -> None:
    """``bits``, and the right to execute (a folder: to enter) where the owner had it."""
    wanted = bits | (0o111 if before & stat.S_IXUSR or stat.S_ISDIR(before) else 0)
    if stat.S_IMODE(before) != wanted:
        path.chmod(wanted)
