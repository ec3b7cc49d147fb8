"""Files that a step has linked from outside of the store: found by their links, and made the store's own.

Whoever rewrote such a file in place would change what was built, and what was published of it.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from forge.files import copies, trees
from forge.files.trees import Inode
from forge.store.artifact import Artifact

_LARGE = 1024 * 1024


def own(tree: Path, needs: Iterable[Artifact], others: Callable[[], Iterable[Artifact]]) -> None:
    """Give every file in ``tree`` that has a name outside of it an inode of its own, but for those that are an artifact's.

    Files are linked from ``needs``, as a rule; ``others`` are asked for where one is not.
    """
    names: defaultdict[Inode, list[Path]] = defaultdict(list)
    links: dict[Inode, int] = {}
    for item in trees.walk(tree):
        if item.is_file and item.status.st_nlink > 1:
            names[item.inode].append(item.path)
            links[item.inode] = item.status.st_nlink
    outside = {inode for inode in names if links[inode] > len(names[inode])}
    if outside:
        outside -= _inodes(needs)
    if outside:
        outside -= _inodes(others())
    for inode in outside:
        _replace(names[inode], tree.parent / f"own.{uuid4().hex}")


def known(tree: Path, needs: Iterable[Artifact]) -> Mapping[Inode, str]:
    """Hex blake3 of files that need not be read again: copies made just now, and what is linked from ``needs``."""
    digests, linked = dict[Inode, str](), False
    for item in trees.walk(tree):
        if item.is_file:
            linked = linked or item.status.st_nlink > 1
            if made := copies.copied(item.status):
                digests[item.inode] = made
    if linked:
        for need in needs:
            for entry in need.files():
                if entry.size >= _LARGE:
                    status = (need.path / entry.path).stat()
                    digests[status.st_dev, status.st_ino] = entry.blake3
    return digests


def _inodes(artifacts: Iterable[Artifact]) -> frozenset[Inode]:
    return frozenset(item.inode for held in artifacts for item in trees.walk(held.path) if item.is_file)


def _replace(names: Sequence[Path], fresh: Path) -> None:
    """Put a copy in the place of all of ``names``, which are one file."""
    try:
        copies.copy(names[0], fresh)
        for name in names:
            link = name.with_name(f".{fresh.name}")
            os.link(fresh, link)
            link.replace(name)
    finally:
        fresh.unlink(missing_ok=True)
