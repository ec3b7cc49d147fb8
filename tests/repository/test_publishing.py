"""A publish shows all of a model or nothing, shares its bytes with the store, and leaves other models alone."""

import errno
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from forge.errors import RepositoryError
from forge.files import trees
from forge.repository import publish as publishing
from forge.schema.manifest import Manifest, PublishedModel, RecipeFile
from forge.schema.values import COMMON_ROLES, LimitsTable, Names, Role, RuntimeKind, SamplingTable
from killing import at_every_instant
from store_makers import child, provenance, store

INSIDE = "/forge/repository"


def relocate(repository: Path) -> Callable[[str], str]:
    return lambda text: text.replace(INSIDE, str(repository))


class Bench:
    """A store, a repository, and entries to publish into it."""

    def __init__(self, root: Path) -> None:
        self.store = store(root / "home")
        self.repository = root / "repository"

    def entry(self, model: PublishedModel, weights: str) -> Path:
        def assemble(out: Path) -> None:
            for role, folder in model.roles.items():
                (out / folder / "1").mkdir(parents=True)
                where = f"{INSIDE}/{model.assets}/engines"
                (out / folder / "config.pbtxt").write_text(f'name: "{folder}" # {weights} {where}\n')
                if role is not Role.ENSEMBLE:
                    (out / folder / "1" / "model.py").write_text(f"# {weights}")
            (out / model.assets / "engines").mkdir(parents=True)
            (out / model.assets / "engines" / "rank0.engine").write_text(weights)

        return self.store.make(model.entry, provenance("entry"), assemble)[0].path

    def publish(self, name: str, weights: str = "v1", *, prefix: str | None = None) -> publishing.Published:
        model = a_model(name, weights, prefix=prefix)
        entry = self.entry(model, weights)
        return publishing.publish(entry, self.repository, model, relocate(self.repository))

    def shown(self) -> dict[str, str]:
        """Every published folder with the one version that all of its files are of."""
        found: dict[str, str] = {}
        for model in publishing.inventory(self.repository).models:
            for folder in model.folders:
                found[folder] = version(self.repository / folder)
        return found

    def tree(self) -> set[str]:
        top = {path.name for path in self.repository.iterdir()} - {"_assets", ".forge", ".forge.lock", "forge.json"}
        assets = self.repository / "_assets"
        return top | {f"_assets/{path.name}" for path in (assets.iterdir() if assets.is_dir() else ())}


def a_model(name: str, weights: str = "v1", *, prefix: str | None = None) -> PublishedModel:
    prefix = name if prefix is None else prefix
    entry = f"{weights}-{name}-{prefix}"
    return PublishedModel(name=name, prefix=prefix, entry=entry, runtime=RuntimeKind.TWIN, roles=Names(prefix).all())


def version(folder: Path) -> str:
    versions = {
        next(word for word in ("v1", "v2") if word in item.path.read_text()) for item in trees.walk(folder) if item.is_file
    }
    assert len(versions) == 1, f"{folder} is half one and half the other"
    return versions.pop()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_publish_lays_every_folder_and_writes_the_manifest(bench: Bench) -> None:
    bench.publish("m", prefix="")
    held = publishing.inventory(bench.repository)
    assert held.root == str(bench.repository)
    assert held.models == (a_model("m", prefix=""),)
    assert bench.tree() == {*map(str, COMMON_ROLES), "_assets/m"}
    assert (bench.repository / "ensemble" / "1").is_dir()
    assert not (bench.repository / ".forge").exists()


def test_weights_share_their_bytes_with_the_store(bench: Bench) -> None:
    done = bench.publish("m", "v1-weights")
    assert done.copied == 0
    assert done.linked >= len("v1-weights")
    published = bench.repository / "_assets/m/engines/rank0.engine"
    held = bench.entry(a_model("m", "v1-weights"), "")
    assert published.stat().st_ino == (held / "_assets/m/engines/rank0.engine").stat().st_ino


def test_configs_name_the_repository_and_leave_the_stores_alone(bench: Bench) -> None:
    bench.publish("m")
    text = (bench.repository / "m-tensorrt_llm/config.pbtxt").read_text()
    assert str(bench.repository / "_assets/m/engines") in text
    entry = bench.entry(a_model("m"), "")
    assert INSIDE in (entry / "m-tensorrt_llm/config.pbtxt").read_text()
    assert bench.store.verify() == ()


def test_publishing_the_same_again_changes_nothing(bench: Bench) -> None:
    assert bench.publish("m").changed
    before = {item.relative: item.status.st_ctime_ns for item in trees.walk(bench.repository)}
    assert not bench.publish("m").changed
    after = {item.relative: item.status.st_ctime_ns for item in trees.walk(bench.repository)}
    assert {path for path in before if before[path] != after[path]} <= {".forge.lock"}


def test_a_repository_keeps_its_id_when_moved_or_empty(bench: Bench) -> None:
    bench.publish("m")
    drawn = publishing.inventory(bench.repository).id
    assert len(drawn) == 32
    bench.publish("n")
    bench.repository = bench.repository.rename(bench.repository.with_name("moved"))
    publishing.settle(bench.repository, relocate(bench.repository))
    for name in "mn":
        publishing.withdraw(bench.repository, name)
    assert publishing.inventory(bench.repository) == Manifest(root=str(bench.repository), id=drawn)


def test_an_older_forges_repository_gets_an_id_when_written(bench: Bench) -> None:
    bench.publish("m")
    file = bench.repository / "forge.json"
    former = {each: held for each, held in json.loads(file.read_text()).items() if each != "id"}
    file.write_text(json.dumps({**former, "format": 3}))
    assert publishing.inventory(bench.repository).id == ""
    bench.publish("n")
    assert len(publishing.inventory(bench.repository).id) == 32


@pytest.mark.parametrize(
    "other",
    [
        {"sampling": SamplingTable(temperature=0.5)},
        {"limits": LimitsTable(max_prompts=2)},
        {"recipe": RecipeFile.of("/a/m.toml", b"")},
    ],
)
def test_changed_sampling_limits_or_recipe_change_only_the_manifest(bench: Bench, other: dict[str, Any]) -> None:
    bench.publish("m")
    model = replace(a_model("m"), **other)
    done = publishing.publish(bench.entry(model, "v1"), bench.repository, model, relocate(bench.repository))
    assert not done.changed
    assert publishing.inventory(bench.repository).models == (model,)


@pytest.mark.parametrize("harm", ["weights", "config", "missing"])
def test_what_no_longer_is_as_published_is_published_anew(bench: Bench, harm: str) -> None:
    bench.publish("m")
    if harm == "weights":  # damaged in the store too, found by verify there, and made anew
        weights = bench.repository / "_assets/m/engines/rank0.engine"
        weights.chmod(0o644)
        weights.write_text("v2")
        assert len(bench.store.verify()) == 1
    elif harm == "config":
        (bench.repository / "m-ensemble/config.pbtxt").write_text("v2")
    else:
        (bench.repository / "m-preprocessing/1/model.py").unlink()
    assert bench.publish("m").changed
    assert set(bench.shown().values()) == {"v1"}
    assert (bench.repository / "m-preprocessing/1/model.py").is_file()


def test_a_new_version_replaces_the_old_and_nothing_else(bench: Bench) -> None:
    bench.publish("a")
    bench.publish("b")
    others = (bench.repository / "b-ensemble").stat().st_ino
    bench.publish("a", "v2")
    assert {folder: shown for folder, shown in bench.shown().items() if "b" not in folder.split("-")[0][-1]} == dict.fromkeys(
        a_model("a").folders, "v2"
    )
    assert (bench.repository / "b-ensemble").stat().st_ino == others
    assert bench.tree() == {*a_model("a").folders, *a_model("b").folders}


def test_a_plain_model_stands_alone(bench: Bench) -> None:
    bench.publish("a", prefix="")
    with pytest.raises(RepositoryError, match="'a' has plain folder names") as caught:
        bench.publish("b")
    assert "forge build A B" in caught.value.hint
    with pytest.raises(RepositoryError, match="plain folder names"):
        bench.publish("b", prefix="")
    assert bench.tree() == set(a_model("a", prefix="").folders)


def test_a_plain_model_is_not_put_beside_others(bench: Bench) -> None:
    bench.publish("a")
    bench.publish("b")
    with pytest.raises(RepositoryError, match="'b' has plain folder names"):
        bench.publish("b", prefix="")


def test_a_new_prefix_removes_former_folders_and_lets_another_join(bench: Bench) -> None:
    bench.publish("a", prefix="")
    bench.publish("a")
    assert bench.tree() == set(a_model("a").folders)
    bench.publish("b")
    bench.publish("b", prefix="c")
    assert bench.tree() == {*a_model("a").folders, *a_model("b", prefix="c").folders}


@pytest.mark.parametrize("folder", ["m-ensemble", "_assets/m"])
def test_a_folder_forge_did_not_put_there_is_kept(bench: Bench, folder: str) -> None:
    (bench.repository / folder).mkdir(parents=True)
    (bench.repository / folder / "mine").write_text("v1")
    with pytest.raises(RepositoryError, match=f"the folder '{folder}' is in the way"):
        bench.publish("m")
    assert [path.name for path in (bench.repository / folder).iterdir()] == ["mine"]


def test_a_folder_of_another_model_is_never_overwritten(bench: Bench) -> None:
    bench.publish("a", prefix="x")
    with pytest.raises(RepositoryError, match="belongs to the model 'a'"):
        bench.publish("b", prefix="x")


def test_an_entry_that_is_not_the_models_is_refused(bench: Bench) -> None:
    entry = bench.entry(a_model("a"), "v1")
    with pytest.raises(RepositoryError, match=r"disagree about .*a-ensemble"):
        publishing.publish(entry, bench.repository, a_model("b"), relocate(bench.repository))


def test_a_withdrawn_model_is_gone_and_the_others_stay(bench: Bench) -> None:
    bench.publish("a")
    bench.publish("b")
    publishing.withdraw(bench.repository, "a")
    assert bench.tree() == set(a_model("b").folders)
    assert publishing.inventory(bench.repository).models == (a_model("b"),)
    with pytest.raises(RepositoryError, match="there is no model 'a'") as caught:
        publishing.withdraw(bench.repository, "a")
    assert "b" in caught.value.hint


def test_a_repository_that_moved_is_settled_at_its_new_place(bench: Bench) -> None:
    bench.publish("a")
    bench.publish("b")
    moved = bench.repository.with_name("moved")
    bench.repository.rename(moved)
    assert publishing.settle(moved, relocate(moved))
    assert publishing.inventory(moved).root == str(moved)
    for name in "ab":
        text = (moved / f"{name}-tensorrt_llm/config.pbtxt").read_text()
        assert str(moved) in text
        assert str(bench.repository) not in text
    assert not publishing.settle(moved, relocate(moved))
    bench.repository = moved
    assert not bench.publish("a").changed


def test_a_publish_into_a_moved_repository_settles_the_others_too(bench: Bench) -> None:
    bench.publish("a")
    bench.repository = bench.repository.rename(bench.repository.with_name("moved"))
    bench.publish("b")
    assert str(bench.repository) in (bench.repository / "a-ensemble/config.pbtxt").read_text()


def test_across_filesystems_bytes_are_copied_once_and_counted(bench: Bench) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == bench.repository.parent.stat().st_dev:
        pytest.skip("needs a second filesystem at /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        bench.repository = Path(elsewhere) / "repository"
        done = bench.publish("m")
        assert done.linked == 0
        assert done.copied >= len("v1")
        assert not bench.publish("m").changed
        assert set(bench.shown().values()) == {"v1"}


def test_where_the_disk_refuses_the_repository_stays_as_it_was(bench: Bench) -> None:
    bench.publish("m")

    def refuse(_: str) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    model = a_model("m", "v2")
    with pytest.raises(RepositoryError, match="could not be written: the disk is full"):
        publishing.publish(bench.entry(model, "v2"), bench.repository, model, refuse)
    assert set(bench.shown().values()) == {"v1"}
    assert not (bench.repository / ".forge").exists()


def survive_every_instant(root: Path) -> None:
    """Die at every instant of replacing v1 by v2; readers see whole folders, and the next publish finishes or undoes."""
    bench = Bench(root)
    bench.publish("a")
    bench.publish("b")
    second = a_model("a", "v2")
    entry = bench.entry(second, "v2")
    seen: set[str] = set()

    def look(instant: int) -> None:
        assert bench.tree() == {*a_model("a").folders, *a_model("b").folders}, instant
        bench.shown()  # each folder of one version
        bench.publish("b")
        versions = {shown for folder, shown in bench.shown().items() if folder in second.folders}
        stated = next(one.entry for one in publishing.inventory(bench.repository).models if one.name == "a")
        assert {stated[:2]} == versions, instant
        assert not (bench.repository / ".forge").exists(), instant
        seen.update(versions)
        bench.publish("a")

    def act() -> None:
        publishing.publish(entry, bench.repository, second, relocate(bench.repository))

    at_every_instant(act, look, room="forge.repository.publish", stride=2)
    at_every_instant(act, look, stride=23)
    assert seen == {"v1", "v2"}


@pytest.mark.parametrize("way", ["place", "asset", "staging"])
def test_a_journal_from_elsewhere_moves_nothing_outside_of_its_repository(tmp_path: Path, way: str) -> None:
    mine, place, name = tmp_path / "mine", tmp_path / "fetched", f"staged-{'0' * 32}"
    (mine / "x").mkdir(parents=True)
    (mine / "x" / ".forge-publish").write_text(name)
    (place / ".forge" / name / "in").mkdir(parents=True)
    (place / "forge.json").write_text('{"format": 4}')
    swap = {"place": "../mine/x" if way == "place" else "_assets/x", "former": True}
    if way == "asset":
        (place / "_assets").symlink_to(mine)
    if way == "staging":
        (place / ".forge" / name / "in" / "_assets").symlink_to(mine)
    journal = {"staging": name, "swaps": [swap], "leave": [], "manifest": ""}
    (place / ".forge" / "journal.json").write_text(json.dumps(journal))
    with pytest.raises(RepositoryError, match="cannot be read" if way == "place" else "leads out of the repository"):
        publishing.inventory(place)
    assert (mine / "x" / ".forge-publish").read_text() == name


def test_a_folder_named_forge_of_somebody_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".forge").mkdir()
    (tmp_path / ".forge" / "mods").write_text("")
    assert publishing.found(tmp_path) is None
    assert [path.name for path in tmp_path.rglob("*")] == [".forge", "mods"]


SURVIVE = """
import sys
from pathlib import Path
from store_makers import room
from test_publishing import survive_every_instant
with room(Path(sys.argv[1])) as root:
    survive_every_instant(root)
"""


@pytest.mark.slow
def test_the_next_publish_finishes_or_undoes_a_killed_one(tmp_path: Path) -> None:
    process = child(SURVIVE, tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


TURNS = """
import sys
from pathlib import Path
from test_publishing import Bench
bench = Bench(Path(sys.argv[1]))
for weights in ("v1", "v2") * 8:
    bench.publish(sys.argv[2], weights)
"""


@pytest.mark.slow
def test_publishes_at_the_same_time_do_not_lose_one_another(tmp_path: Path) -> None:
    processes = [child(TURNS, tmp_path, name) for name in ("a", "b", "c")]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    bench = Bench(tmp_path)
    assert [model.name for model in publishing.inventory(bench.repository).models] == ["a", "b", "c"]
    assert set(bench.shown().values()) == {"v2"}
    assert len(bench.tree()) == 18


if sys.platform != "linux":
    pytest.skip("forge publishes on Linux", allow_module_level=True)


def test_several_appear_in_one_publish_or_not_at_all(bench: Bench) -> None:
    first, second = a_model("a"), a_model("b")
    both = [(bench.entry(model, "v1"), model) for model in (first, second)]

    def refuse(_: str) -> str:
        raise OSError(28, "No space left on device")

    with pytest.raises(RepositoryError):
        publishing.publish_all(both, bench.repository, refuse)
    assert publishing.inventory(bench.repository).models == ()
    done = publishing.publish_all(both, bench.repository, relocate(bench.repository))
    assert [each.changed for each in done] == [True, True]
    assert [model.name for model in publishing.inventory(bench.repository).models] == ["a", "b"]
    again = publishing.publish_all(both, bench.repository, relocate(bench.repository))
    assert [each.changed for each in again] == [False, False]


def test_one_that_has_no_room_keeps_the_others_out(bench: Bench) -> None:
    (bench.repository / "b-ensemble").mkdir(parents=True)
    both = [(bench.entry(model, "v1"), model) for model in (a_model("a"), a_model("b"))]
    with pytest.raises(RepositoryError, match="forge did not put it there"):
        publishing.publish_all(both, bench.repository, relocate(bench.repository))
    assert publishing.inventory(bench.repository).models == ()
