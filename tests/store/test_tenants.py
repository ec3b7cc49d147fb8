"""What a repository stands on stays in the store while nobody has said that the repository is gone."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from forge.errors import StoreError
from forge.schema import manifest
from forge.schema.manifest import Manifest, PublishedModel, Serving
from forge.schema.values import Names, RuntimeKind
from forge.store.store import Store
from store_makers import Clock, key, provenance, store

DAY = 86400


class Bench:
    """A store of six artifacts of 1000 bytes, and repositories that are published from it by hand."""

    def __init__(self, root: Path) -> None:
        self.root, self.clock = root, Clock()
        self.store = store(root / "home", self.clock)
        self.made = 0
        self.make(6)

    def make(self, count: int) -> None:
        for _ in range(count):
            self.store.make(key(self.made), provenance(f"step {self.made}"), lambda out: (out / "f").write_bytes(bytes(1000)))
            self.made += 1
            self.clock.now += 60

    def publish(self, name: str, *numbers: int, identity: str = "", of: Store | None = None) -> Path:
        """A repository whose manifest names these artifacts, as a build leaves it."""
        place = self.root / name
        with (of or self.store).publishing(place, [key(number) for number in numbers]):
            write(place, numbers, identity)
        return place

    def kept(self) -> list[int]:
        """What a collection leaves."""
        self.store.collect()
        return [int(one.key, 16) for one in self.store.artifacts()]

    def away(self) -> list[str]:
        return [one.place for one in self.store.collect(dry_run=True).away]


def write(place: Path, numbers: Sequence[int], identity: str = "") -> None:
    place.mkdir(exist_ok=True)
    former = place / manifest.NAME
    identity = identity or (manifest.read(former.read_bytes()).id if former.exists() else "")
    models: tuple[PublishedModel, ...] = ()
    if numbers:
        first, *rest = map(key, numbers)
        serving = Serving(environment=rest[-1]) if rest else None
        roles = Names("m").all()
        models = (
            PublishedModel(
                name="m",
                entry=first,
                keys=dict(zip(rest, rest, strict=True)),
                runtime=RuntimeKind.TWIN,
                roles=roles,
                serving=serving,
            ),
        )
    held = Manifest(models=models, root=str(place), id=identity).named
    former.write_text(manifest.write(held))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_a_moved_repository_names_stays_known_there(bench: Bench) -> None:
    place = bench.publish("models", 0, 1)
    moved = place.rename(bench.root / "moved")
    assert bench.kept() == [0, 1]
    (lost,) = bench.store.collect().away
    assert (lost.place, lost.why, lost.artifacts, lost.size) == (str(place), "there is no such folder", 2, 2000)
    bench.store.remember(moved)
    assert bench.away() == []
    assert bench.kept() == [0, 1]
    moved.rename(place)
    assert bench.away() == [str(moved)]
    bench.store.remember(place)
    assert bench.away() == []


def test_an_empty_mount_point_is_out_of_reach_not_empty(bench: Bench) -> None:
    place = bench.publish("models", 0, 1)
    shutil.rmtree(place)
    place.mkdir()
    assert bench.kept() == [0, 1]
    assert "mount point" in bench.store.collect().away[0].why


def test_a_repository_without_its_last_model_is_known_empty(bench: Bench) -> None:
    place = bench.publish("models", 0, 1)
    bench.publish("models")
    assert bench.kept() == []
    shutil.rmtree(place)
    assert bench.away() == []


def test_an_unreadable_manifest_keeps_what_it_named_and_is_told(bench: Bench) -> None:
    place = bench.publish("models", 0, 1)
    (place / manifest.NAME).write_text("{")
    assert bench.kept() == [0, 1]
    assert "cannot be read" in bench.store.collect().away[0].why


def test_another_repository_at_an_unmounted_ones_place_takes_nothing(bench: Bench) -> None:
    place = bench.publish("models", 0, 1)
    mounted = place.rename(bench.root / "elsewhere")
    bench.publish("models", 2)
    assert bench.kept() == [0, 1, 2]
    assert bench.store.collect().away[0].why == "another repository stands there now"
    shutil.rmtree(place)
    mounted.rename(place)
    assert bench.kept() == [0, 1, 2]
    bench.store.forget(str(place))
    assert bench.kept() == [0, 1]


def test_a_copy_holds_what_it_names_like_its_original(bench: Bench) -> None:
    place = bench.publish("models", 0, 1)
    copy = bench.root / "copy"
    shutil.copytree(place, copy)
    bench.store.remember(copy)
    bench.publish("copy", 2)
    assert bench.kept() == [0, 1, 2]
    shutil.rmtree(copy)
    assert bench.kept() == [0, 1, 2]
    assert bench.away() == [str(copy)]


def test_two_homes_hold_what_one_repository_names(bench: Bench) -> None:
    place = bench.publish("models", 0, 1)
    other = Bench(bench.root / "other")
    other.store.remember(place)
    place.rename(bench.root / "moved")
    assert bench.kept() == other.kept() == [0, 1]


def test_what_a_forgotten_repository_stood_on_is_freed(bench: Bench) -> None:
    """Forgotten by place or by id."""
    for name in ("first", "second"):
        place = bench.publish(name, 0, 1)
        drawn = manifest.read((place / manifest.NAME).read_bytes()).id
        shutil.rmtree(place)
        if name == "second":
            bench.publish("third", 0)
        (lost,) = bench.store.forget(str(place) if name == "first" else drawn[:12])
        assert (lost.place, lost.id, lost.artifacts) == (str(place), drawn, 2 if name == "first" else 1)
    assert bench.kept() == [0]


def test_only_what_is_out_of_reach_is_forgotten(bench: Bench) -> None:
    place = bench.publish("models", 0)
    with pytest.raises(StoreError, match="where it was"):
        bench.store.forget(str(place))
    with pytest.raises(StoreError, match="no repository of that name") as caught:
        bench.store.forget("elsewhere")
    assert caught.value.hint == "Out of reach: none."
    assert bench.kept() == [0]


def test_what_is_long_out_of_reach_is_forgotten_if_asked(bench: Bench) -> None:
    place = bench.publish("models", 0, 1)
    place.rename(bench.root / "moved")
    bench.clock.now += 90 * DAY  # nobody looked: since when it is away is not known
    assert bench.store.collect(unreachable_after=30 * DAY).forgotten == ()
    bench.clock.now += 31 * DAY
    would = bench.store.collect(unreachable_after=30 * DAY, dry_run=True)
    assert [one.place for one in would.forgotten] == [str(place)]
    assert len(would.removed) == 2
    assert bench.kept() == [0, 1]
    assert bench.store.collect(unreachable_after=30 * DAY).removed == would.removed
    assert bench.away() == []


def fail(bench: Bench, place: Path, number: int) -> None:
    """A publish that ends with an error before its manifest is there."""
    with pytest.raises(OSError, match="full"), bench.store.publishing(place, [key(number)]):
        raise OSError("the disk is full")


def test_a_dead_publish_holds_its_files_a_failed_one_not(bench: Bench) -> None:
    place = bench.publish("models", 0)
    (place / ".forge").mkdir()
    fail(bench, place, 1)
    assert bench.kept() == [0, 1]
    (place / ".forge").rmdir()
    assert bench.kept() == [0]
    new = bench.root / "new"
    fail(bench, new, 0)
    assert bench.away() == []


def test_a_note_that_is_damaged_lets_nothing_go(bench: Bench) -> None:
    bench.publish("models", 0)
    (note,) = (bench.root / "home" / "repositories").iterdir()
    note.write_text("?")
    assert bench.kept() == [0, 1, 2, 3, 4, 5]
    assert "damaged" in bench.store.collect().away[0].why
    bench.store.forget(str(note))
    assert bench.kept() == []
