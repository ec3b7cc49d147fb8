"""What ``forge cache gc`` gives up: artifacts that nothing uses, and the family images that only such artifacts told of."""

import re
import time
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from forge.errors import HostError
from forge.files import trees
from forge.machine.containers import Containers, FamilyImage
from forge.store.gc import Removed, Unreachable
from forge.store.store import Store

_BEGUN = re.compile(r"\.(new|read|lock)-\w+|\..+\.[0-9a-f]{32}|[0-9a-f]{16,}\.[0-9]+")
"""How notes and answers are called until they are whole: for moments, or for ever where their writer was killed."""
_HOUR = 3600.0


class Collected(Struct, frozen=True):
    """What went, or with a dry run would go; ``images`` by their names. ``unreachable`` are repositories that keep what they
    stand on though they are not where they were, ``forgotten`` those that were out of reach for too long."""

    artifacts: tuple[Removed, ...]
    images: tuple[str, ...]
    unreachable: tuple[Unreachable, ...] = ()
    forgotten: tuple[Unreachable, ...] = ()


class Upkeep(Struct, frozen=True):
    """Of one home: its store, and the images that the container engine holds for it."""

    home: Path
    store: Store
    containers: Containers

    def collect(
        self,
        *,
        older_than: float | None = None,
        max_size: int | None = None,
        unreachable_after: float | None = None,
        dry_run: bool = False,
    ) -> Collected:
        """As ``Store.collect``, and what that leaves in the container engine, where one answers."""
        done = self.store.collect(
            older_than=older_than, max_size=max_size, unreachable_after=unreachable_after, dry_run=dry_run
        )
        held = frozenset(artifact.key for artifact in self.store.artifacts()) - {one.key for one in done.removed}
        try:
            with self.store.claims.gate():  # an image that a build is about to find is not taken from it
                found = self._left(held | done.kept | self.store.claims.claimed())
                images = found if dry_run else tuple(one for one in found if self.containers.discard(one))
        except HostError:  # no engine, or one that went away: what it holds is told next time
            images = ()
        if not dry_run:
            self._drop_begun()
        return Collected(done.removed, tuple(image.name for image in images), done.away, done.forgotten)

    def _drop_begun(self) -> None:
        """Remove what killed writers had begun beside the artifacts, which the store sweeps itself."""
        for depth in ("*", "*/*"):
            for path in self.home.glob(f"{depth}/*"):
                with suppress(OSError):  # it is whole by now, or another's
                    if _BEGUN.fullmatch(path.name) and time.time() - path.lstat().st_mtime > _HOUR:
                        trees.remove(path)

    def _left(self, keys: frozenset[str]) -> tuple[FamilyImage, ...]:
        return tuple(image for image in self.containers.made(str(self.home)) if image.key not in keys)
