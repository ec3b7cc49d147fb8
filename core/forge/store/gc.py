"""Which unused artifacts to give up. Pure: choosing by age and by the room they take."""

from collections import Counter
from collections.abc import Container, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from forge.files import trees
from forge.files.trees import Inode
from forge.store.artifact import Artifact
from forge.store.tenants import Tenant


class Shelved(Struct, frozen=True):
    """An artifact as collection sees it: when ``made`` and last ``used`` (seconds since 1970), the bytes of each inode."""

    key: str
    step: str
    used: float
    inodes: Mapping[Inode, int]
    claimed: bool = False
    made: float = 0.0


class Removed(Struct, frozen=True):
    """An artifact that was, or in a dry run would be, given up; its ``size`` bytes stand in none that is kept."""

    key: str
    step: str
    size: int
    used: float


class Unreachable(Struct, frozen=True):
    """A repository that is not where it was, ``since`` (seconds since 1970) that was seen first, and ``why``.

    It alone keeps ``artifacts`` of ``size`` bytes from being collected. What it holds is not ``known`` where only an older
    forge has seen it: then that is all that was made before.
    """

    place: str
    id: str
    since: float
    why: str
    known: bool
    artifacts: int
    size: int


class Choice(Struct, frozen=True):
    """What was, or in a dry run would be, given up: artifacts, and claims of repositories that are ``forgotten``. ``away`` are
    those out of reach that still claim what they stand on."""

    removed: tuple[Removed, ...]
    forgotten: tuple[Unreachable, ...] = ()
    away: tuple[Unreachable, ...] = ()
    kept: frozenset[str] = frozenset()
    """Keys that repositories claim, forgotten ones apart."""


def _claimed(shelf: Sequence[Shelved], keys: Container[str]) -> tuple[Shelved, ...]:
    return tuple(replace(one, claimed=True) if one.key in keys else one for one in shelf)


def holding(shelf: Sequence[Shelved], away: Sequence[Tenant]) -> tuple[Shelved, ...]:
    """The shelf with what repositories out of reach hold claimed too."""
    return _claimed(shelf, frozenset[str]().union(*(_of(tenant, shelf) for tenant in away)))


def weighed(shelf: Sequence[Shelved], tenants: Sequence[Tenant], away: Sequence[Tenant]) -> tuple[Unreachable, ...]:
    """``tenants``, out of those ``away``, each with what it alone holds."""
    found: list[Unreachable] = []
    for one in tenants:
        rest = holding(shelf, [other for other in away if other != one])
        more, fewer = (choose(each, now=0.0) for each in (rest, _claimed(rest, _of(one, shelf))))
        size = sum(each.size for each in more) - sum(each.size for each in fewer)
        known = one.keys is not None
        found.append(Unreachable(one.place, one.id, one.gone, one.why, known, len(more) - len(fewer), size))
    return tuple(found)


def _of(tenant: Tenant, shelf: Sequence[Shelved]) -> frozenset[str]:
    """What a repository out of reach holds; all that there was by then where that is not known."""
    if tenant.keys is None:
        return frozenset(one.key for one in shelf if one.made <= tenant.gone)
    return frozenset(tenant.keys)


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


def shelved(held: Artifact, *, claimed: bool) -> Shelved:
    """An artifact as collecting sees it: each of its inodes once."""
    inodes = {item.inode: item.status.st_size for item in trees.walk(held.path) if item.is_file}
    return Shelved(held.key, held.manifest.provenance.step, held.used, inodes, claimed, held.manifest.made_at)
