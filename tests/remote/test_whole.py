"""Rot: a published file, or an artifact, whose bytes are no longer those that were built. It is found, named and made anew."""

import os
import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from fake_wiring import World
from forge.api.forge import Forge
from forge.build.supply import Sharing
from forge.cli import main
from forge.errors import RepositoryError
from forge.remote.open import place as opened
from forge.remote.shared import Shared
from forge.schema.manifest import PublishedModel
from forge.serve.digests import Due, files
from forge.serve.scrub import SHARE, Scrub, rest
from forge.store.checks import Enough
from forge.store.store import Store
from store_makers import rot

TWIN = 'name = "{name}"\n[source]\nhub = "acme/tiny"\n[runtime]\nkind = "twin"\n'


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


def recipe(tmp_path: Path, name: str = "a") -> Path:
    file = tmp_path / f"{name}.toml"
    file.write_text(TWIN.format(name=name))
    return file


@pytest.fixture
def models(shop: Forge, tmp_path: Path) -> Path:
    shop.build([recipe(tmp_path)], repository=tmp_path / "models")
    return tmp_path / "models"


def weights(models: Path) -> Path:
    return next((models / "_assets" / "a").rglob("*.safetensors"))


def apart(file: Path) -> None:
    """As where the repository is on another disk: bytes of its own."""
    content, mode = file.read_bytes(), file.stat().st_mode & 0o777
    file.unlink()
    file.write_bytes(content)
    file.chmod(mode)


def remembered(shop: Forge, models: Path) -> None:
    """Let the note say what it would if the rot had not changed ctime: a test cannot write without that."""
    from forge.serve.digests import looked

    seen = shop.store.checks.seen(models)
    due = {each.entry.path: each for model in shop.manifest(models).models for each in files(models, model, shop.store)[0]}
    shop.store.checks.keep(models, {path: replace(looked(due[path]), at=one.at) for path, one in seen.items()})


def said(world: World) -> str:
    return "\n".join(event.text for event in world.events)


def test_a_start_reads_all_once_and_names_later_skips(shop: Forge, world: World, models: Path) -> None:
    shop.stop(shop.serve(models))
    assert "read: what was built" in said(world)
    world.events.clear()
    shop.stop(shop.serve(models))
    assert "not read: unchanged since the last check, at most 0 seconds ago" in said(world)
    assert "read: what was built" not in said(world)
    world.events.clear()
    shop.stop(shop.serve(models, verify="never"))
    assert "no file was checked, as was asked for" in said(world)


@pytest.mark.parametrize("name", ["*.safetensors", "tokenizer.json", "model.py"])
def test_rot_ends_a_start_first_naming_file_and_model(shop: Forge, world: World, models: Path, name: str) -> None:
    file = next(models.rglob(name))
    rot(file)
    with pytest.raises(RepositoryError, match="not what was built") as caught:
        shop.serve(models)
    assert f"a: {file.relative_to(models)}: its bytes changed" in caught.value.what
    assert "forge build" in caught.value.hint
    assert world.server.alive == []
    shop.stop(shop.serve(models, verify="never"))
    assert "found rotten before, and served all the same" in said(world)


def test_a_start_says_how_long_ago_the_oldest_check_was(shop: Forge, world: World, models: Path) -> None:
    shop.stop(shop.serve(models))
    seen, now = shop.store.checks.seen(models), time.time()
    aged = {path: replace(one, at=now - 86400.0 * days) for days, (path, one) in enumerate(sorted(seen.items()), 2)}
    shop.store.checks.keep(models, aged)
    shop.stop(shop.serve(models))
    assert f"at most {len(seen) + 1} days ago" in said(world)


def test_rot_with_unchanged_times_is_found_by_full_reads(shop: Forge, models: Path) -> None:
    shop.stop(shop.serve(models))
    rot(weights(models))
    remembered(shop, models)
    shop.stop(shop.serve(models))  # this is what `changed` cannot see
    with pytest.raises(RepositoryError, match="its bytes changed"):
        shop.serve(models, verify="always")
    with pytest.raises(RepositoryError, match="its bytes changed"):
        shop.serve(models)  # and from then on it is known


@pytest.mark.parametrize("linked", [True, False])
def test_a_build_makes_rotten_files_anew_and_lays_them(shop: Forge, models: Path, tmp_path: Path, linked: bool) -> None:
    file = weights(models)
    if not linked:
        apart(file)
    before = rot(file)
    with pytest.raises(RepositoryError):
        shop.serve(models)
    shop.build([recipe(tmp_path)], repository=models)
    assert weights(models).read_bytes() == before
    assert shop.store.verify() == ()
    assert shop.store.checks.rotten(models) == ()
    shop.stop(shop.serve(models, verify="always"))


def test_missing_and_longer_files_are_named_and_edited_configs_told(shop: Forge, world: World, models: Path) -> None:
    config = models / "preprocessing" / "config.pbtxt"
    config.write_text(config.read_text() + "# mine\n")
    shop.stop(shop.serve(models))
    assert "preprocessing/config.pbtxt is not as forge wrote it" in said(world)
    file = weights(models)
    apart(file)
    file.chmod(0o644)
    file.write_bytes(file.read_bytes() + b"x")
    gone = next((models / "_assets" / "a").rglob("tokenizer.json"))
    gone.unlink()
    with pytest.raises(RepositoryError) as caught:
        shop.serve(models)
    assert f"{gone.relative_to(models)}: missing" in caught.value.what
    assert f"{file.relative_to(models)}: had" in caught.value.what


def test_what_the_store_does_not_know_is_served_and_said(shop: Forge, world: World, models: Path) -> None:
    from forge.files import trees

    entry = shop.store.find(shop.manifest(models).models[0].entry)
    assert entry
    trees.remove(entry.path.parent)
    shop.stop(shop.serve(models))
    assert "a: not checked: what it was published from is not in this store" in said(world)


def test_what_rots_in_the_store_is_not_served_from_repositories(shop: Forge, models: Path, tmp_path: Path) -> None:
    shop.stop(shop.serve(models))
    before = rot(weights(models))
    remembered(shop, models)
    done = shop.integrity.verify()
    assert done.store.damages
    assert [each.file for each in done.published] == [str(weights(models).relative_to(models))]
    with pytest.raises(RepositoryError, match="its bytes changed"):
        shop.serve(models)
    shop.build([recipe(tmp_path)], repository=models)
    assert weights(models).read_bytes() == before
    shop.stop(shop.serve(models))


def test_copies_on_another_disk_are_read_with_the_store(shop: Forge, models: Path) -> None:
    apart(weights(models))
    rot(weights(models))
    done = shop.integrity.verify()
    assert done.store.damages == ()
    assert "its bytes changed" in done.published[0].why


def test_a_running_server_takes_in_nothing_that_is_rotten(shop: Forge, world: World, models: Path) -> None:
    shop.serve(models)
    rot(weights(models))
    with pytest.raises(RepositoryError, match="its bytes changed"):
        shop.reload(models)
    assert world.server.told == []


def test_a_rotten_newcomer_is_taken_out_of_the_repository_again(shop: Forge, world: World, tmp_path: Path) -> None:
    place = tmp_path / "models"
    shop.add([recipe(tmp_path, "a")], repository=place)
    shop.add([recipe(tmp_path, "b")], repository=tmp_path / "elsewhere")
    shop.serve(place)
    rot(next((tmp_path / "elsewhere" / "_assets" / "b").rglob("tokenizer.json")))
    with pytest.raises(RepositoryError, match="its bytes changed"):
        shop.add([recipe(tmp_path, "b")], repository=place)
    assert [model.name for model in shop.manifest(place).models] == ["a"]
    assert world.server.told == []


# -- a part of the store at a time


def test_repeated_parts_go_through_the_whole_store_oldest_first(shop: Forge, models: Path) -> None:
    held = {one.key: one for one in shop.store.artifacts()}
    large = max(one.size for one in held.values())
    again = shop.store.read_again(enough=Enough(share=0.1))
    assert 0 < again.artifacts < len(held)
    assert again.held == len(held)
    rounds = 1
    began = time.time() - 1
    for one in held.values():
        os.utime(one.path.parent / "manifest.json")
    while shop.store.read_again(enough=Enough(share=0.1)).oldest < began - 10**6:
        rounds += 1
    damaged = next(one for one in held.values() if one.size == large)
    rot(max((each for each in damaged.path.rglob("*") if each.is_file()), key=lambda each: each.stat().st_size))
    found: list[str] = []
    for _ in range(len(held)):
        found += [each.key for each in shop.store.read_again(enough=Enough(share=0.01)).damages]
    assert damaged.key in found


def test_a_part_by_time_reads_one_artifact_at_least(shop: Forge, models: Path) -> None:
    ticks = iter(range(0, 1000, 100))
    again = shop.store.read_again(enough=Enough(seconds=60, steady=lambda: float(next(ticks))))
    assert again.artifacts == 1


def test_what_is_rotten_is_taken_from_the_shared_store_again(shop: Forge, models: Path, tmp_path: Path) -> None:
    url = (tmp_path / "shared").as_uri()
    (tmp_path / "shared").mkdir()
    shared = Shared(lambda: opened(url, 10.0), url, lambda _: None, time.time, notary=shop.notary)
    sharing = Sharing(shared, writes=True, kinds=("weights", "checkpoint", "engine"))
    pushed = {one.key for one in sharing.send(shop.store.artifacts())}
    assert pushed
    rot(weights(models))
    done = shop.integrity.verify(sharing=sharing)
    assert done.repaired
    assert {*done.repaired} == pushed & {each.key for each in done.store.damages}
    assert all(shop.store.find(key) for key in done.repaired)
    assert shop.store.verify() == ()


# -- the scrub


class Clock:
    """Seconds of a processor, which reading takes, and seconds that pass."""

    def __init__(self, cost: float = 0.01) -> None:
        self.cpu, self.wall, self.cost = 0.0, 0.0, cost
        self.left = 10**6
        self.longest = 0.0

    def used(self) -> float:
        self.cpu += self.cost
        self.wall += self.cost
        return self.cpu

    def pause(self, seconds: float) -> bool:
        self.wall += max(0.0, seconds)
        self.longest = max(self.longest, seconds)
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("cost", [1e-6, 0.01, 3.0])
def test_a_scrub_uses_at_most_a_twentieth_of_a_core(shop: Forge, models: Path, cost: float) -> None:
    clock = Clock(cost)
    clock.left = 200
    scrub = Scrub(shop.store, clock.used, clock.pause, time.time, lambda _: None)
    scrub.run(lambda: [models], 1e-9)
    assert clock.cpu <= SHARE * clock.wall + 4 * cost  # what was used since the last rest is paid for by the next one
    assert rest(1.0) == pytest.approx(19.0)


def read(scrub: Scrub, models: Path, after: float) -> None:
    """Until nothing more is due."""
    assert any(scrub.look([models], after) for _ in range(1000))


def test_a_scrub_rests_while_it_reads_one_file(shop: Forge, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge.serve.scrub._PIECE", 1024)
    clock = Clock()
    before = clock.left
    read(Scrub(shop.store, clock.used, clock.pause, time.time, lambda _: None), models, 1.0)
    size = sum(one.size for one in shop.store.checks.seen(models).values())
    assert before - clock.left >= size / 1024 > 2
    assert clock.longest <= rest(4 * clock.cost)  # not as long as a whole file of many pieces would want


def test_a_scrub_reads_the_longest_unread_and_then_waits(shop: Forge, models: Path) -> None:
    clock, now = Clock(), [time.time()]
    scrub = Scrub(shop.store, clock.used, clock.pause, lambda: now[0], lambda _: None)
    shop.stop(shop.serve(models))
    assert scrub.look([models], 86400.0) > 0
    now[0] += 86401.0
    files = len(shop.store.checks.seen(models))
    assert [scrub.look([models], 86400.0) for _ in range(files)] == [0.0] * files
    assert min(one.at for one in shop.store.checks.seen(models).values()) == now[0]
    assert scrub.look([models], 86400.0) > 0


def test_a_scrub_lists_files_once_for_many_readings(shop: Forge, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[int] = []

    def counted(repository: Path, model: PublishedModel, store: Store) -> tuple[list[Due], str]:
        found = files(repository, model, store)
        listed.append(len(found[0]))
        return found

    monkeypatch.setattr("forge.serve.scrub.files", counted)
    scrub = Scrub(shop.store, Clock(0.0).used, lambda _: False, lambda: time.time() + 100.0, lambda _: None)
    read(scrub, models, 50.0)
    assert len(listed) == 2  # the second one finds that nothing more is due
    assert len(shop.store.checks.seen(models)) == listed[0] > 2


def test_a_scrub_that_is_ended_keeps_what_it_has_read(shop: Forge, models: Path) -> None:
    clock = Clock(0.0)
    clock.left = 4
    Scrub(shop.store, clock.used, clock.pause, time.time, lambda _: None).run(lambda: [models], 1e-9)
    assert shop.store.checks.seen(models)


def test_a_clock_put_back_makes_a_scrub_read_again(shop: Forge, models: Path) -> None:
    now, clock = [time.time() + 365 * 86400.0], Clock()
    scrub = Scrub(shop.store, clock.used, clock.pause, lambda: now[0], lambda _: None)
    read(scrub, models, 86400.0)
    now[0] -= 300 * 86400.0
    assert scrub.look([models], 86400.0) == 0.0
    read(scrub, models, 86400.0)
    assert scrub.look([models], 86400.0) > 0


def test_a_scrub_names_rot_once_until_it_is_fixed(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    clock, now, lines = Clock(), [time.time()], list[str]()
    scrub = Scrub(shop.store, clock.used, clock.pause, lambda: now[0], lines.append)
    running = shop.serve(models)
    rot(weights(models))
    remembered(shop, models)
    now[0] += 100.0
    read(scrub, models, 50.0)
    assert len(lines) == 1
    assert lines[0].startswith("ROTTEN: ")
    assert str(weights(models).relative_to(models)) in lines[0]
    assert [each.model for each in shop.integrity.rotten([running])] == ["a"]
    assert world.server.alive == [running]
    shop.build([recipe(tmp_path)], repository=models)
    assert shop.integrity.rotten([running]) == ()


def test_rot_that_another_forge_laid_anew_is_served(shop: Forge, models: Path) -> None:
    file = weights(models)
    before = rot(file)
    assert shop.integrity.verify().published
    with pytest.raises(RepositoryError):
        shop.serve(models)
    file.unlink()
    file.write_bytes(before)
    shop.stop(shop.serve(models))


def test_a_publish_during_a_read_is_not_called_rot(shop: Forge, models: Path) -> None:
    from forge.serve.digests import files, judge

    due = files(models, shop.manifest(models).models[0], shop.store)[0][0]
    assert "published anew" in str(judge(replace(due, key="of-before"), 1.0, lambda _path, _size: "another"))


def test_a_file_written_to_meanwhile_is_not_called_rot(shop: Forge, models: Path) -> None:
    from forge.serve.digests import files, judge

    def digest(place: Path, _: int) -> str:
        os.utime(place)
        return "another"

    due = files(models, shop.manifest(models).models[0], shop.store)[0][0]
    assert "written to meanwhile" in str(judge(due, 1.0, digest))


def test_the_verb_reads_a_share_and_refuses_wrong_shares(shop: Forge, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_HOME", str(shop.home))
    done = CliRunner().invoke(main, ["cache", "verify", "--some", "1%"])
    assert done.exit_code == 0
    assert re.search(r"[1-9]\d* of \d+ artifacts are whole \(.* read\); the rest was checked since ", done.output)
    assert CliRunner().invoke(main, ["cache", "verify", "--for", "5m"]).exit_code == 0
    for wrong in ("10", "0%", "101%", "x%"):
        assert CliRunner().invoke(main, ["cache", "verify", "--some", wrong]).exit_code == 2, wrong
    done = CliRunner().invoke(main, ["cache", "verify", "--repair"])
    assert done.exit_code == 6
    assert "no shared store is named" in done.output
    rot(weights(models))
    done = CliRunner().invoke(main, ["cache", "verify"])
    assert done.exit_code == 6
    assert "`forge build` of its recipe lays it anew" in done.output


def test_an_unreadable_block_is_rot_and_ends_no_process(shop: Forge, models: Path) -> None:
    file = weights(models)
    file.unlink()
    file.symlink_to("/proc/self/mem")  # its first page is nobody's: reading it is EIO
    with pytest.raises(RepositoryError, match="cannot be read: Input/output error"):
        shop.serve(models)
