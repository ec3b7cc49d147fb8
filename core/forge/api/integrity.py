"""Whether what is kept and published is still what was made, and fixing it: for serve, build, status and ``cache verify``."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from forge.build.supply import Sharing
from forge.files import trees
from forge.repository import publish
from forge.schema.manifest import Manifest
from forge.serve import digests
from forge.serve.digests import Due, Found, Verify
from forge.serve.server_types import Running
from forge.store.checks import ALL, Again, Enough, Rot
from forge.store.store import Store


class Verified(Struct, frozen=True):
    """What ``forge cache verify`` has found: in the store, and among the published files."""

    store: Again
    published: tuple[Rot, ...]
    repaired: tuple[str, ...]
    """Keys of artifacts that were rotten, and are here again."""


class Integrity(Struct, frozen=True):
    """Of one home. ``say`` is told what was checked, skipped and removed."""

    store: Store
    say: Callable[[str], None]

    def require(self, held: Mapping[Path, Manifest], verify: Verify, models: Iterable[str] = ()) -> None:
        """RepositoryError where a published file is not what was built; what was read, and what not, is said."""
        self._doubt()
        names, found = tuple(models), Found()
        for place, manifest in held.items():
            found += digests.check(place, manifest, self.store, verify, time.time(), names)
        for line in found.told(time.time()):
            self.say(line)
        digests.require(found)

    def _doubt(self) -> None:
        """Say who else could have laid what is about to be believed."""
        for place in (self.store.root.parent, self.store.root):
            if others := trees.writers(place):
                self.say(f"{place} may be written to by {others}: what lies there is believed (`forge doctor` says more)")

    def require_some(self, place: Path, models: Iterable[str]) -> None:
        """The same for what a running server is about to take in."""
        if names := tuple(models):
            self.require({place: publish.inventory(place)}, "changed", names)

    def rotten(self, servers: Iterable[Running]) -> tuple[Rot, ...]:
        """What is known to be rotten of what ``servers`` serve."""
        return tuple(rot for one in servers for place in one.repositories for rot in self.store.checks.rotten(Path(place)))

    def given_up(self, place: Path) -> frozenset[str]:
        """The models at ``place`` with rotten files, after what is rotten of that in the store is gone, to be made anew."""
        self._doubt()
        names = frozenset(rot.model for rot in self.store.checks.rotten(place))
        for model in publish.inventory(place).models if names else ():
            if model.name in names:
                self.say(
                    f"{model.name}: files of it are rotten; what it stands on is read again, and made anew where it has to be"
                )
                for damage in self.store.verify(model.held):
                    self.say(str(damage))
        return names

    def fixed(self, place: Path, models: Iterable[str]) -> None:
        """Note that ``models`` have just been laid anew."""
        done = frozenset(models)
        rotten = self.store.checks.rotten(place)
        if rotten:
            self.store.checks.note(place, tuple(rot for rot in rotten if rot.model not in done))

    def verify(self, enough: Enough = ALL, sharing: Sharing | None = None) -> Verified:
        """Read the store, and published files that have bytes of their own; take what was rotten out of ``sharing`` again."""
        shown = [
            (model, digests.files(place, model, self.store)[0])
            for place in self.store.repositories()
            for model in publish.inventory(place).models
        ]
        own = self._read(
            [each for model, due in shown if due and digests.copies(model, due, self.store) for each in due], enough
        )
        again = self.store.read_again(enough=enough)
        gone = {damage.key: damage for damage in again.damages}
        linked = self._read([each for model, due in shown if model.held & gone.keys() for each in due])
        there = sharing.has(tuple(gone)) if sharing and gone else frozenset[str]()
        repaired = [key for key in gone if sharing and key in there and sharing.shared.take(key, gone[key].step, self.store)]
        rotten = tuple(dict.fromkeys((*own, *linked)))
        return Verified(again, rotten, tuple(repaired))

    def _read(self, due: Sequence[Due], enough: Enough = ALL) -> tuple[Rot, ...]:
        """What is rotten among published files; it is noted, so that it is neither served nor taken for well by a build."""
        if enough is not ALL:
            return ()
        now = time.time()
        judged = [digests.judge(each, now) for each in due]
        rotten = tuple(said for said in judged if isinstance(said, Rot))
        for place in {rot.repository for rot in rotten}:
            mine = {rot.file: rot for rot in rotten if rot.repository == place}
            before = {rot.file: rot for rot in self.store.checks.rotten(Path(place))}
            self.store.checks.note(Path(place), tuple({**before, **mine}.values()))
        return rotten
