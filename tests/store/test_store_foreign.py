"""A store of an older forge, which hard-linked a person's checkpoint: found, and parted from it."""

import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from forge.cli import main
from forge.repository import publish
from forge.schema.manifest import PublishedModel, Serving
from forge.schema.values import Role, RuntimeKind
from forge.store.store import Artifact, Store
from store_makers import KEY, key, provenance, store

WEIGHTS = os.urandom(5000)


def published() -> PublishedModel:
    serving = Serving(environment=key(2), backends=key(3))
    roles = {Role.TENSORRT_LLM: "llama"}
    return PublishedModel(name="llama", entry=key(1), keys={}, runtime=RuntimeKind.TWIN, roles=roles, serving=serving)


class Old:
    """A home as an older forge left it: ``mine`` is the person's file, ``model`` and ``entry`` hold it by link, as the
    repository does."""

    def __init__(self, base: Path, mode: int = 0o644) -> None:
        self.root, self.mine, self.repository = base / "home", base / "mine.safetensors", base / "repository"
        self.said: list[str] = []
        self.mine.write_bytes(WEIGHTS)
        old = store(self.root)
        self.model, _ = old.make(KEY, provenance(), lambda out: (out / "w").write_bytes(WEIGHTS))
        self.entry, _ = old.make(key(1), provenance("entry"), self._entry)
        self.other, _ = old.make(key(4), provenance("other"), lambda out: (out / "f").write_text("forge's own"))
        for held, path in ((self.model, "w"), (self.entry, "llama/w")):
            place = held.path / path
            place.parent.chmod(0o755)
            place.unlink()
            os.link(self.mine, place)
            place.parent.chmod(0o555)
        self.mine.chmod(mode)
        publish.publish(self.entry.path, self.repository, published(), lambda text: text)
        old.remember(self.repository)
        (self.root / "own").unlink()

    def _entry(self, out: Path) -> None:
        (out / "llama").mkdir()
        (out / "llama" / "w").write_bytes(WEIGHTS)
        (out / "llama" / "config.pbtxt").write_text("")

    @property
    def places(self) -> tuple[Path, Path, Path]:
        return self.model.path / "w", self.entry.path / "llama" / "w", self.repository / "llama" / "w"

    def store(self) -> Store:
        """The store as the next process opens it."""
        return Store(self.root, clock=lambda: 1.0, say=self.said.append)

    def rewrite(self) -> None:
        with self.mine.open("r+b") as file:
            file.write(bytes(5000))


@pytest.fixture
def old(tmp_path: Path) -> Old:
    made = Old(tmp_path)
    assert made.mine.stat().st_nlink == 4
    return made


def test_the_first_use_of_an_old_store_parts_it_from_the_persons_files(old: Old) -> None:
    found = old.store().find(KEY)
    assert isinstance(found, Artifact)
    assert old.mine.stat().st_nlink == 1
    old.rewrite()
    assert [place.read_bytes() for place in old.places] == [WEIGHTS] * 3
    assert len({place.stat().st_ino for place in old.places}) == 1, "what forge shares with itself stays shared"
    assert {stat.S_IMODE(place.stat().st_mode) for place in old.places} == {0o444}
    assert {stat.S_IMODE(place.parent.stat().st_mode) for place in old.places[:2]} == {0o555}
    assert old.said == ["2 files of the store were shared with files outside of forge, and are copies now (10,000 bytes)"]
    assert old.store().verify() == ()


def test_a_store_is_looked_at_once(old: Old) -> None:
    old.store().find(KEY)
    os.link(old.other.path / "f", old.mine.with_name("later"))
    old.said.clear()
    old.store().find(KEY)
    assert old.said == []
    parted, damaged = old.store().part()
    assert [(one.step, one.path) for one in parted] == [("other", "f")]
    assert damaged == ()
    assert old.store().part() == ((), ())


def test_what_was_rewritten_is_dropped_and_its_published_copies_are_named(old: Old) -> None:
    old.rewrite()
    assert old.store().find(KEY) is None
    assert old.store().find(key(1)) is None
    assert old.store().find(key(4)) is not None
    assert len(old.said) == 2
    assert "w is shared with a file outside of forge, and its bytes changed there" in old.said[0] + old.said[1]
    assert f"{old.repository}/llama/w changed with it: build that model again" in old.said[0] + old.said[1]
    assert old.mine.read_bytes() == bytes(5000)


def test_a_store_of_this_forge_is_never_searched(tmp_path: Path) -> None:
    made, _ = store(tmp_path).make(KEY, provenance(), lambda out: (out / "w").write_bytes(WEIGHTS))
    os.link(made.path / "w", tmp_path / "mine")
    store(tmp_path).find(KEY)
    assert (made.path / "w").stat().st_nlink == 2


@pytest.mark.parametrize(("mode", "links"), [(0o444, 5), (0o644, 1)])
def test_links_of_a_repository_that_moved_away_are_no_strangers(tmp_path: Path, mode: int, links: int) -> None:
    old = Old(tmp_path, mode)
    os.link(old.mine, old.mine.with_name("another"))
    held = old.store()
    elsewhere = old.repository.rename(tmp_path / "elsewhere")
    held.part()
    there = (elsewhere / "llama" / "w", old.entry.path / "llama" / "w")
    assert os.path.samefile(*there) == (links == 5)


def test_a_repository_that_is_reached_on_two_ways_hides_nothing(old: Old, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(old.repository)
    old.store().remember(tmp_path / "way")
    old.store().find(KEY)
    assert old.mine.stat().st_nlink == 1


def test_verify_says_it_in_words(old: Old, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "forge"))
    (tmp_path / "forge").mkdir()
    old.root.rename(tmp_path / "forge" / "store")
    done = CliRunner().invoke(main, ["cache", "verify"])
    assert done.exit_code == 0, done.output
    assert "model: w was shared with a file outside of forge, and is a copy now" in done.output
    assert "every artifact is whole" in done.output
    harmed = next((tmp_path / "forge" / "store" / "artifacts").rglob("f"))
    harmed.chmod(0o644)
    harmed.write_text("forge's 0wn")
    done = CliRunner().invoke(main, ["cache", "verify"])
    assert done.exit_code == 6
    assert f"{key(4)[:12]}  other: f: its bytes changed (blake3 " in done.output
    assert "It is removed, and made anew when it is needed." in done.output
    assert "Damage(" not in done.output
    done = CliRunner().invoke(main, ["cache", "verify", "--json"])
    told = json.loads(done.stdout)
    assert (told["damaged"], told["parted"], told["published"], told["repaired"]) == ([], [], [], [])
    assert told["read"]["artifacts"] == told["read"]["held"]
