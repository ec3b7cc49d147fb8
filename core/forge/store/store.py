"""Finished artifacts by key: made once, whole, read-only.

``artifacts/<kk>/<key>/`` holds ``tree`` (what was made), ``manifest.json`` (what it was made from) and ``files.json``
(what it holds). It is staged under ``staging/`` and renamed, so whatever has a key's name is whole: to find is to look.
"""

import errno
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import msgspec
from blake3 import blake3
from filelock import FileLock, Timeout
from msgspec.structs import replace

from forge.errors import StoreError
from forge.files import trees
from forge.store import artifact, foreign
from forge.store.artifact import Artifact, Damage, Manifest, Provenance
from forge.store.checks import ALL, Again, Checks, Enough, read_again
from forge.store.claims import Claims, alone
from forge.store.gc import Choice, Removed, Shelved, Unreachable, choose, holding, shelved, weighed
from forge.store.tenants import Tenant, Tenants, not_lost

__all__ = ["Artifact", "Damage", "Manifest", "Provenance", "Removed", "Store"]

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{2,127}")
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENOLCK}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_HINT = "Make room (`forge cache gc` removes what nothing uses) or set FORGE_HOME to a place that can be written."


class Store:
    """A folder of artifacts. Any number of processes use one store at a time; all of them see only what is whole."""

    def __init__(self, root: Path, *, clock: Callable[[], float]) -> None:
        """``clock`` gives seconds since 1970. Nothing is made on disk before the first artifact."""
        self.root = root.absolute()
        self.claims = Claims(self.root)
        self.checks = Checks(self.root)
        self._tenants = Tenants(self.root)
        self._clock = clock
        self._artifacts = self.root / "artifacts"
        self._staging = self.root / "staging"
        self._locks = self.root / "locks"
        self._index = self.root / "index"

    # -- finding

    def find(self, key: str) -> Artifact | None:
        """The artifact of this key, if it is held. It now counts as just used."""
        held = self._read(key)
        if held:
            now = self._clock()
            with suppress(OSError):  # another's store, or a read-only one: it only ages faster
                os.utime(held.path.parent / artifact.MANIFEST, (now, now))
        return held

    def artifacts(self) -> Iterator[Artifact]:
        """All that is held, by key. Looking at them is not using them."""
        for key in self._keys():
            if held := self._read(key):
                yield held

    def nearest(self, provenance: Provenance) -> Artifact | None:
        """The held result of the same step and action that shares the most inputs and needs with ``provenance``."""
        folder = self._indexed(provenance)
        wanted = {*provenance.inputs.items(), *provenance.needs.items()}
        best: tuple[int, float, str] | None = None
        found: Artifact | None = None
        for key in sorted(filter(_KEY.fullmatch, os.listdir(folder) if folder.is_dir() else ())):
            held = self._read(key)
            if held is None:
                (folder / key).unlink(missing_ok=True)
                continue
            before = held.manifest.provenance
            rank = (len(wanted & {*before.inputs.items(), *before.needs.items()}), held.manifest.made_at, key)
            if best is None or rank > best:
                best, found = rank, held
        return found

    # -- making

    def make(
        self,
        key: str,
        provenance: Provenance,
        fill: Callable[[Path], object],
        *,
        waiting: Callable[[str], None] = lambda _: None,
    ) -> tuple[Artifact, bool]:
        """The artifact of ``key``, and whether this call made it: ``fill`` writes it into an empty folder.

        One process makes a key while the others wait and say so to ``waiting``, about every second. What ``fill`` raises is
        raised, and nothing is left; StoreError where the disk refuses. A file that ``fill`` links from outside of the store is
        copied, and its own name and mode stay as they were.
        """
        if held := self.find(key):
            return held, False
        with self._explained(provenance.step), self._only_one(key, provenance.step, waiting):
            if held := self.find(key):
                return held, False
            return self._stage(key, provenance, fill), True

    def take(self, key: str, fill: Callable[[Path], object]) -> Artifact:
        """The artifact of ``key`` as another store made it: ``fill`` lays its tree, listing and manifest into an empty folder.

        ``fill`` has verified every file. What it raises is raised, and nothing is left; StoreError where the disk refuses.
        """
        with self._explained("what was taken"), self._only_one(key, key[:12], lambda _: None):
            if held := self.find(key):
                return held
            with self._aside(key) as staging:
                fill(staging)
                taken = artifact.read(key, staging)
                if taken is None:
                    raise StoreError("what was taken has no manifest of its key", where=key)
                trees.freeze(taken.path)
                return self._shelve(taken.manifest, staging, self._clock())

    @contextmanager
    def using(self, keys: Iterable[str]) -> Generator[None]:
        """Keep ``keys`` from being collected during a ``with`` block, held already or not."""
        with ExitStack() as stack:
            with self._explained("a claim"):
                stack.enter_context(self.claims.using(keys))
            yield

    def lend(self, keys: Iterable[str], pid: int, started: float) -> None:
        """Keep ``keys`` from being collected while ``pid`` lives, which began ``started`` clock ticks after boot."""
        with self._explained("a claim"):
            self.claims.lend(keys, pid, started)

    def remember(self, repository: Path) -> None:
        """Keep what the manifest of ``repository`` names from being collected, until it is forgotten (``forget``)."""
        with self._explained("the list of repositories"), self.claims.gate():
            self._tenants.seen(repository)

    @contextmanager
    def publishing(self, repository: Path, keys: Iterable[str] = ()) -> Generator[None]:
        """Change ``repository`` in a ``with`` block: ``keys``, which it is about to name, are kept from the beginning on."""
        with self._explained("the list of repositories"), self.claims.gate():
            self._tenants.expect(repository, keys)
        try:
            yield
        finally:
            self.remember(repository)

    def leftovers(self) -> tuple[str, ...]:
        """What dead makers left in staging, for ``sweep`` to remove; what a living one works on is not among it."""
        return tuple(name for name in self._staged() if self._idle(name.partition(".")[0]))

    def sweep(self, *, mine: str = "") -> None:
        """Remove what dead makers left. ``mine`` is a key whose lock the caller holds."""
        for name in self._staged():
            key = name.partition(".")[0]
            if key == mine:
                trees.remove(self._staging / name)
                continue
            with suppress(Timeout), FileLock(self._lock(key), timeout=0):
                trees.remove(self._staging / name)

    # -- keeping

    def verify(self, keys: Iterable[str] | None = None) -> tuple[Damage, ...]:
        """Read every byte again; an artifact that is not what was made is removed, so that it is built anew."""
        return self.read_again(keys).damages

    def read_again(self, keys: Iterable[str] | None = None, enough: Enough = ALL) -> Again:
        """The same until it is ``enough``, those first whose last check is longest ago; what was done, and what is left."""
        with self._explained("the store"):
            there = ((key, self._read(key)) for key in (self._keys() if keys is None else keys))
            done = read_again(there, self._retire, self._clock(), enough)
            self.sweep()
        return done

    def repositories(self) -> tuple[Path, ...]:
        """Those that were published from here, and are where they were."""
        with self._explained("the list of repositories"), self.claims.gate():
            return tuple(Path(one.place) for one in self._tenants.look(self._clock()) if not one.gone)

    def collect(
        self,
        *,
        older_than: float | None = None,
        max_size: int | None = None,
        unreachable_after: float | None = None,
        dry_run: bool = False,
    ) -> Choice:
        """Give up artifacts that no repository and no running build or server uses, least recently used first.

        ``older_than`` in seconds since the last use, ``max_size`` in bytes of all that is kept; with neither, all. A repository
        out of reach keeps what it stands on until it is forgotten, or has been out of reach for ``unreachable_after`` seconds.
        """
        now = self._clock()
        with self._explained("the store"):
            with self.claims.gate():
                tenants = self._tenants.look(now)
                shelf, away = self._shelf(tenants), [one for one in tenants if one.gone]
                gone = tuple(one for one in away if unreachable_after is not None and now - one.gone >= unreachable_after)
                waiting = tuple(one for one in away if one not in gone)
                kept = frozenset[str]().union(*(one.keys or () for one in tenants if one not in gone))
                found = Choice((), weighed(shelf, gone, away), weighed(shelf, waiting, away), kept)
                chosen = choose(holding(shelf, waiting), now=now, older_than=older_than, max_size=max_size)
                if not dry_run:
                    for tenant in gone:
                        self._tenants.drop(tenant)
                    for one in chosen:
                        self._retire(one.key)
            if not dry_run:
                self.sweep()
        return replace(found, removed=chosen)

    def forget(self, repository: str) -> tuple[Unreachable, ...]:
        """Keep nothing any more for a repository out of reach, by its place or its id: what it was, and what it alone held.

        StoreError where none of that name is remembered, or where it is in reach.
        """
        with self._explained("the list of repositories"), self.claims.gate():
            tenants = self._tenants.look(self._clock())
            away = [one for one in tenants if one.gone]
            lost = [one for one in away if one.is_called(repository)]
            if not lost:
                raise not_lost(repository, tenants)
            for one in lost:
                self._tenants.drop(one)
            return weighed(self._shelf(tenants), lost, away)

    # -- inside

    def _shelf(self, tenants: Sequence[Tenant]) -> tuple[Shelved, ...]:
        """All that is held, with what builds, servers and those of ``tenants`` that are in reach claim."""
        keys = self.claims.claimed().union(*(one.keys or () for one in tenants if not one.gone))
        return tuple(shelved(one, claimed=one.key in keys) for one in self.artifacts())

    def _staged(self) -> list[str]:
        names = os.listdir(self._staging) if self._staging.is_dir() else []
        return sorted(name for name in names if _KEY.fullmatch(name.partition(".")[0]))

    def _idle(self, key: str) -> bool:
        """Whether nobody makes this key now."""
        if not self._lock(key).exists():
            return True
        with suppress(Timeout), FileLock(self._lock(key), timeout=0):
            return True
        return False

    def _place(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key")
        return self._artifacts / key[:2] / key

    def _lock(self, key: str) -> Path:
        # Lock files stay: removing one that another process is about to lock would let two makers in.
        return self._locks / key

    def _indexed(self, provenance: Provenance) -> Path:
        return self._index / blake3(f"{provenance.step}\0{provenance.action}".encode()).hexdigest()[:32]

    def _keys(self) -> Iterator[str]:
        """Of all that is held. What others have laid there (a file manager, NFS) is nothing of the store's."""
        for shelf in sorted(self._artifacts.iterdir()) if self._artifacts.is_dir() else ():
            yield from sorted(filter(_KEY.fullmatch, os.listdir(shelf) if shelf.is_dir() else ()))

    def _read(self, key: str) -> Artifact | None:
        with self._explained("the store", "read"):
            return artifact.read(key, self._place(key))

    def _stage(self, key: str, provenance: Provenance, fill: Callable[[Path], object]) -> Artifact:
        began = self._clock()
        with self._aside(key) as staging:
            tree = staging / artifact.TREE
            try:
                fill(tree)
                needs = tuple(need for key in provenance.needs.values() if (need := self._read(key)))
                foreign.own(tree, needs, self.artifacts)
                files = tuple(trees.surveyed(tree, foreign.known(tree, needs)))
            except trees.Unkeepable as error:
                raise StoreError(f"{provenance.step} made what cannot be kept: {error}", where=str(tree)) from error
            trees.freeze(tree)
            listing = msgspec.json.encode(files)
            ended = self._clock()
            manifest = artifact.sealed(
                Manifest(
                    key=key,
                    provenance=provenance,
                    made_at=ended,
                    seconds=ended - began,
                    size=sum(file.size for file in files),
                    listing=blake3(listing).hexdigest(),
                )
            )
            (staging / artifact.LISTING).write_bytes(listing)
            (staging / artifact.MANIFEST).write_bytes(artifact.written(manifest))
            return self._shelve(manifest, staging, ended)

    @contextmanager
    def _aside(self, key: str) -> Generator[Path]:
        """A folder to make the artifact of ``key`` in; the caller holds its lock. What is left of it at the end is removed."""
        self._retire(key)  # a manifest that cannot be read
        self.sweep(mine=key)
        staging = self._staging / f"{key}.{uuid4().hex}"
        try:
            (staging / artifact.TREE).mkdir(parents=True)
            yield staging
        finally:
            trees.remove(staging)

    def _shelve(self, manifest: Manifest, staging: Path, now: float) -> Artifact:
        """From staging to the shelf in one rename; indexed before, and after in case ``nearest`` found that idle."""
        key = manifest.key
        os.utime(staging / artifact.MANIFEST, (now, now))
        trees.flush(staging)
        place = self._place(key)
        place.parent.mkdir(parents=True, exist_ok=True)
        index = self._indexed(manifest.provenance)
        index.mkdir(parents=True, exist_ok=True)
        (index / key).touch()
        staging.rename(place)
        (index / key).touch()
        trees.flush_one(place.parent)
        trees.flush_one(place.parent.parent)
        return Artifact(key, place / artifact.TREE, manifest)

    def _retire(self, key: str) -> bool:
        """Take an artifact off the shelf, for ``sweep`` to remove; says whether it was there."""
        self._staging.mkdir(parents=True, exist_ok=True)
        try:
            self._place(key).rename(self._staging / f"{key}.{uuid4().hex}")
        except FileNotFoundError:
            return False
        return True

    def _only_one(self, key: str, step: str, waiting: Callable[[str], None]) -> AbstractContextManager[None]:
        self._locks.mkdir(parents=True, exist_ok=True)
        return alone(self._lock(key), lambda: waiting(f"{step}: another process is making this; waiting for it"))

    def _ours(self, place: object) -> bool:
        path = Path(str(place))
        return self.root == path or path in self.root.parents or self.root in path.parents

    @contextmanager
    def _explained(self, what: str, done: str = "kept") -> Generator[None]:
        """The disk's refusals as StoreError. Other errors of the system, out of ``fill``, are not the store's."""
        try:
            yield
        except OSError as error:
            if error.errno not in _DISK and not (error.errno in _FORBIDDEN and self._ours(error.filename)):
                raise
            raise StoreError(
                f"{what} could not be {done}: {trees.reason(error, self.root)}", where=str(self.root), hint=_HINT
            ) from error
