"""Files of the store that somebody else can write to, since another name leads to them: found by their links, and parted.

A forge before this one linked a person's own checkpoint into its store. Whoever rewrote that in place changed what was built,
and what was published of it.
"""

import os
import stat
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from forge.errors import StoreError
from forge.files import copies, trees
from forge.files.trees import Entry, Found, Inode
from forge.store.artifact import Artifact

_WRITABLE = 0o222
_LARGE = 1024 * 1024
_Names = dict[Inode, list[Path]]


@dataclass(frozen=True, slots=True)
class Parted:
    """A file of an artifact that was somebody else's too, and has an inode of its own now; ``size`` in bytes."""

    key: str
    step: str
    path: str
    size: int

    def __str__(self) -> str:
        return f"{self.key[:12]}  {self.step}: {self.path} was shared with a file outside of forge, and is a copy now"


@dataclass(frozen=True, slots=True)
class Changed:
    """An artifact one of whose files was changed from outside; ``published`` are its names in repositories."""

    artifact: Artifact
    path: str
    published: tuple[Path, ...]

    def __str__(self) -> str:
        text = f"{self.path} is shared with a file outside of forge, and its bytes changed there"
        places = ", ".join(map(str, self.published))
        return f"{text}; {places} changed with it: build that model again" if places else text


def own(tree: Path, needs: Iterable[Artifact], others: Callable[[], Iterable[Artifact]]) -> None:
    """Give every file in ``tree`` that has a name outside of it an inode of its own, but for those that are an artifact's.

    Files are linked from ``needs``, as a rule; ``others`` are asked for where one is not.
    """
    names, links = _linked([tree])
    outside = {inode for inode in names if links[inode] > len(names[inode])}
    if outside:
        outside -= _inodes(needs)
    if outside:
        outside -= _inodes(others())
    for inode in outside:
        _replace(names[inode], tree.parent / f"own.{uuid4().hex}", 0)


def part(
    artifacts: Sequence[Artifact], folders: Iterable[Path], aside: Path, away: Collection[str]
) -> tuple[list[Parted], list[Changed]]:
    """Part the files of ``artifacts`` from whoever shares them; those whose bytes are not what was made are only told.

    ``folders`` are all in which forge itself makes links: the store's own and the repositories. ``aside`` is one on the store's
    disk. ``away`` are keys that repositories out of reach stand on: their links cannot be counted, so that a file of theirs
    is somebody else's only where it can be written to.
    """
    names, links = _linked(folders)
    foreign = {inode for inode, places in names.items() if links[inode] > len(places)}
    files = tuple(each for held in artifacts for each in _files(held) if each[2].inode in foreign)
    excused = {found.inode for held, _, found in files if held.key in away and not found.status.st_mode & _WRITABLE}
    parted: list[Parted] = []
    changed: list[Changed] = []
    done: dict[Inode, str] = {}
    for held, entry, found in files:
        if found.inode in excused:
            continue
        if found.inode not in done:
            done[found.inode] = _parted(names[found.inode], entry, aside)
        if done[found.inode] == entry.blake3:
            parted.append(Parted(held.key, held.manifest.provenance.step, entry.path, entry.size))
        else:
            published = tuple(place for place in names[found.inode] if aside.parent not in place.parents)
            changed.append(Changed(held, entry.path, published))
    return parted, changed


def known(tree: Path, needs: Iterable[Artifact]) -> Mapping[Inode, str]:
    """Hex blake3 of files that need not be read again: copies made just now, and what is linked from ``needs``."""
    found = [item for item in trees.walk(tree) if item.is_file]
    digests = {item.inode: made for item in found if (made := copies.copied(item.status))}
    if any(item.status.st_nlink > 1 for item in found):
        for need in needs:
            for entry in need.files():
                if entry.size >= _LARGE:
                    status = (need.path / entry.path).stat()
                    digests[status.st_dev, status.st_ino] = entry.blake3
    return digests


def told(parted: Sequence[Parted]) -> str:
    """The same for all of them, in a sentence."""
    size = sum(one.size for one in parted)
    return f"{len(parted)} files of the store were shared with files outside of forge, and are copies now ({size:,} bytes)"


def _inodes(artifacts: Iterable[Artifact]) -> frozenset[Inode]:
    return frozenset(item.inode for held in artifacts for item in trees.walk(held.path) if item.is_file)


def _files(held: Artifact) -> Iterator[tuple[Artifact, Entry, Found]]:
    """The files of an artifact, as they were made and as they are; none where its listing is damaged, as ``verify`` says."""
    with suppress(StoreError):
        made = {entry.path: entry for entry in held.files()}
        for found in trees.walk(held.path):
            if found.is_file and found.relative in made:
                yield held, made[found.relative], found


def _parted(names: Sequence[Path], entry: Entry, aside: Path) -> str:
    """The digest of what stood there; it stands there no less where that is another than ``entry`` says."""
    aside.mkdir(parents=True, exist_ok=True)
    mode = 0o555 if entry.executable else 0o444
    return _replace(names, aside / f"own.{uuid4().hex}", mode, entry.blake3)


def _replace(names: Sequence[Path], fresh: Path, mode: int, wanted: str = "") -> str:
    """Put a copy in the place of all of ``names``, which are one file, if it has the digest ``wanted``; the digest it has."""
    try:
        made = copies.copy(names[0], fresh).blake3
        if wanted not in ("", made):
            return made
        if mode:
            fresh.chmod(mode)
            trees.flush_one(fresh)
        for name in names:
            with _writable(name.parent), suppress(FileNotFoundError):  # what goes away meanwhile needs nothing
                link = name.with_name(f".{fresh.name}")
                os.link(fresh, link)
                link.replace(name)
        return made
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def _writable(folder: Path) -> Generator[None]:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & stat.S_IWUSR:
        yield
        return
    folder.chmod(mode | stat.S_IWUSR)
    try:
        yield
    finally:
        folder.chmod(mode)


def _linked(folders: Iterable[Path]) -> tuple[_Names, dict[Inode, int]]:
    """The names below ``folders`` of every file that has several, each once; and how many it has anywhere.

    A folder that is reached on two ways (a link, a mount, one that lies in another) counts once: by its own inode.
    """
    names: _Names = {}
    links: dict[Inode, int] = {}
    seen: set[Inode] = set()
    for root in folders:
        for place, inner, files in os.walk(root):
            with suppress(OSError):  # it went away
                status = os.stat(place)
                if (status.st_dev, status.st_ino) in seen:
                    inner.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                _count(place, files, names, links)
    return names, links


def _count(place: str, files: Iterable[str], names: _Names, links: dict[Inode, int]) -> None:
    for file in files:
        with suppress(FileNotFoundError):
            path = Path(place, file)
            status = path.lstat()
            if status.st_nlink > 1 and not path.is_symlink():
                inode = status.st_dev, status.st_ino
                names.setdefault(inode, []).append(path)
                links[inode] = status.st_nlink
