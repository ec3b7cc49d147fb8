"""Which unused artifacts to give up. Pure: choosing by age and by the room they take."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forge.trees import Inode


@dataclass(frozen=True, slots=True)
class Shelved:
    """An artifact as collection sees it: when it was last ``used`` (seconds since 1970) and the bytes of each inode."""

    key: str
    step: str
    used: float
    inodes: Mapping[Inode, int]
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class Removed:
    """An artifact that was, or in a dry run would be, given up; its ``size`` bytes stand in none that is kept."""

    key: str
    step: str
    size: int
    used: float


def choose(
    shelf: Sequence[Shelved], *, now: float, older_than: float | None = None, max_size: int | None = None
) -> tuple[Removed, ...]:
    """The artifacts to give up, least recently used first; never a claimed one.

    With ``older_than`` those unused for that many seconds; with ``max_size`` as many as it takes for the rest to fit
    into that many bytes (a hard link counts once); with neither, every one.
    """
    names = Counter(inode for one in shelf for inode in one.inodes)
    size = sum({inode: size for one in shelf for inode, size in one.inodes.items()}.values())
    chosen: list[Removed] = []
    for one in sorted((one for one in shelf if not one.claimed), key=lambda one: (one.used, one.key)):
        aged = older_than is not None and now - one.used > older_than
        crowded = max_size is not None and size > max_size
        if not (aged or crowded or (older_than is None and max_size is None)):
            continue
        names.subtract(one.inodes.keys())
        freed = sum(bytes_ for inode, bytes_ in one.inodes.items() if not names[inode])
        size -= freed
        chosen.append(Removed(one.key, one.step, freed, one.used))
    return tuple(chosen)
