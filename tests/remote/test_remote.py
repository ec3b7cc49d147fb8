"""A store that several machines share, on a real S3 server and on a folder: what is built once, and what is never taken."""

import json
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import obstore
import pytest
from click.testing import CliRunner, Result

from cloud_servers import address
from fake_wiring import ENGINE, World
from forge.api.forge import Forge
from forge.cli import main
from forge.errors import ConfigError, StoreError
from forge.events import Event
from forge.plan.preview import State
from forge.remote.open import place
from forge.remote.place import PART, RemoteError
from forge.remote.shared import Shared
from forge.settings import RemoteTable, Settings
from forge.store.store import Artifact, Store
from patience import soon
from remote_kit import ENGINE_MADE, fill, large
from s3_server import BUCKET, S3, SECRET, opened
from store_makers import KEY, child, key

SHARED = ["toolchain", "tiny: checkpoint", "tiny: engine"]


@pytest.fixture(params=["file", "s3", "azure", "gcs"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty shared store."""
    return address(request.param, request, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'shared'}"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(ENGINE)
    return file


class Machine:
    """One machine: a home of its own, a world of its own, and the shared store."""

    def __init__(self, home: Path, url: str, **words: Any) -> None:
        self.world, self.home = World(), home
        stated: dict[str, Any] = {"access": "read-write", "deadline": 5.0, **words}
        self.settings = Settings(remote=RemoteTable(url=url, **stated))

    @property
    def shop(self) -> Forge:
        return self.world.shop(self.home, settings=self.settings)

    def build(self, recipe: Path) -> None:
        self.shop.build([recipe], repository=self.home / "models")

    def told(self, kind: str) -> list[str]:
        return [
            event.step.removesuffix(", from the shared store").removesuffix(", to the shared store") for event in self._of(kind)
        ]

    def notes(self) -> str:
        return "\n".join(event.text for event in self._of("note"))

    def _of(self, kind: str) -> list[Event]:
        return [event for event in self.world.events if event.kind == kind]


Machines = Callable[..., Machine]


@pytest.fixture
def machine(tmp_path: Path) -> Machines:
    count = iter(range(9))

    def made(url: str, **words: Any) -> Machine:
        return Machine(tmp_path / f"home{next(count)}", url, **words)

    return made


class Sides:
    """Two local stores and one shared store, spoken to directly."""

    def __init__(self, root: Path, url: str, deadline: float = 5.0) -> None:
        self.here, self.there = (Store(root / name, clock=time.time) for name in ("here", "there"))
        self.events: list[Event] = []
        self.url, self.deadline = url, deadline

    @property
    def shared(self) -> Shared:
        return Shared(lambda: place(self.url, self.deadline), self.url, self.events.append, time.time)

    def made(self, number: int = 0, filled: Callable[[Path], object] = fill) -> Artifact:
        return self.here.make(key(number) if number else KEY, ENGINE_MADE, filled)[0]

    def blobs(self) -> dict[str, int]:
        found = opened(self.url)
        pages = obstore.list(found, prefix="files")  # pyright: ignore[reportUnknownMemberType]
        return {one["path"]: one["size"] for page in pages for one in page}


@pytest.fixture
def sides(tmp_path: Path, url: str) -> Sides:
    return Sides(tmp_path, url)


# -- in a build


def test_two_homes_that_share_a_store_build_once(machine: Machines, url: str, recipe: Path) -> None:
    first, second = machine(url), machine(url)
    first.build(recipe)
    assert sorted(first.told("sent")) == sorted(SHARED)
    states = {one.name: one.state for one in second.shop.foresee([recipe]).steps}
    assert {name for name, state in states.items() if state is State.REMOTE} == {"toolchain", "tiny: engine"}
    assert states["tiny: checkpoint"] is State.SPARED
    second.build(recipe)
    assert sorted(second.told("taken")) == ["tiny: engine", "toolchain"]
    assert second.world.containers.ran == []
    assert not set(second.told("made")) & set(SHARED)
    name = Path("_assets/tiny/engines/rank0.engine")
    assert (first.home / "models" / name).read_bytes() == (second.home / "models" / name).read_bytes()
    assert second.shop.store.verify() == ()


def test_fetched_things_stay_here_unless_allowed_to_go(machine: Machines, folder: str, recipe: Path) -> None:
    plain, open_ = machine(folder), machine(folder, push=("weights",))
    plain.build(recipe)
    assert "tiny: model" not in plain.told("sent")
    open_.build(recipe)
    assert open_.told("sent") == ["tiny: model"]


def test_a_store_that_may_only_be_read_gets_nothing(machine: Machines, folder: str, recipe: Path) -> None:
    reader = machine(folder, access="read-only")
    reader.build(recipe)
    assert (reader.told("sent"), Sides(reader.home, folder).blobs()) == ([], {})


def test_without_a_shared_store_obstore_is_not_even_imported(tmp_path: Path, recipe: Path) -> None:
    code = "import sys; from fake_wiring import World; from pathlib import Path\n"
    code += "World().shop(Path(sys.argv[1])).foresee([sys.argv[2]]); print('obstore' in sys.modules)"
    running = child(code, tmp_path / "home", recipe)
    assert running.communicate()[0].split()[-1] == "False"


@pytest.mark.parametrize(("url", "harm"), [("s3", "rotten"), ("file", "missing"), ("file", "record")], indirect=["url"])
def test_a_rotten_file_is_refused_built_instead_and_sent_anew(
    machine: Machines, url: str, recipe: Path, tmp_path: Path, harm: str
) -> None:
    first, second, third = machine(url), machine(url), machine(url)
    first.build(recipe)
    store = opened(url)
    engine = next(step for step in first.shop.plan([recipe]).steps if step.name == "tiny: engine")
    held = first.shop.store.find(engine.key)
    assert held
    (digest,) = {entry.blake3 for entry in held.files() if entry.path == "rank0.engine"}
    blob = f"files/{digest[:2]}/{digest}"
    if harm == "rotten":
        obstore.put(store, blob, bytes(len(bytes(obstore.get(store, blob).bytes()))))
    elif harm == "missing":
        obstore.delete(store, blob)
    else:
        obstore.put(store, f"keys/{engine.key[:2]}/{engine.key}", b'{"format": 1}')
    second.build(recipe)
    assert "is not taken" in second.notes()
    assert "tiny: engine" in second.told("made")
    assert "tiny: engine" in second.told("sent")
    third.build(recipe)
    assert "tiny: engine" in third.told("taken")


def test_a_rotten_file_is_fixed_by_sending_its_artifact_again(sides: Sides) -> None:
    """A build that does not need the step would never find it out, and what is there is not looked at otherwise."""
    held = sides.made()
    sides.shared.push(held)
    store = opened(sides.url)
    for path, size in sides.blobs().items():
        obstore.put(store, path, bytes(size))
    with pytest.raises(RemoteError) as error:
        sides.shared.pull(KEY, sides.there)
    assert "forge cache push --again" in error.value.hint
    assert sides.shared.push(held).there
    again = sides.shared.push(held, again=True)
    assert (again.there, again.sent) == (False, held.size)
    assert sides.shared.pull(KEY, sides.there)


def test_an_absent_store_is_told_once_and_builds_continue(
    machine: Machines, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes what is said to it, and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/store"
        alone = machine(address, deadline=0.5)
        states = {one.state for one in alone.shop.foresee([recipe]).steps}
        assert states == {State.MISS}
        alone.world.events.clear()
        alone.build(recipe)
    assert set(SHARED) <= set(alone.told("made"))
    assert alone.notes().count("the shared store cannot be") == 1
    refused = machine(address)
    refused.build(recipe)
    assert (refused.home / "models" / "ensemble" / "config.pbtxt").is_file()


@contextmanager
def shown(folder: Path) -> Generator[str]:
    """The address of a web server that shows a folder, and takes nothing."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_a_web_server_shows_of_a_store_is_taken(machine: Machines, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    machine((tmp_path / "store").as_uri()).build(recipe)
    with shown(tmp_path / "store") as address:
        reader = machine(address, access="read-only")
        assert State.REMOTE in {one.state for one in reader.shop.foresee([recipe]).steps}
        reader.build(recipe)
    assert (reader.home / "models" / "ensemble" / "config.pbtxt").is_file()
    assert not set(SHARED) & set(reader.told("made")), "what was there is not made again"


# -- one artifact


def test_an_artifact_returns_as_made_and_with_its_maker(sides: Sides) -> None:
    made = sides.made()
    assert sides.shared.push(made).sent == sum(size for size in sides.blobs().values())
    taken = sides.shared.pull(KEY, sides.there)
    assert taken is not None
    assert (taken.manifest, taken.files()) == (made.manifest, made.files())
    assert sides.there.verify() == ()
    (known,) = sides.shared.records()
    assert known.by is not None
    assert known.by.host == socket.gethostname()


def test_what_is_there_already_is_not_sent_again(sides: Sides) -> None:
    both = b"the same in both" * 1000
    sides.shared.push(sides.made(1, lambda out: (out / "a").write_bytes(both)))
    second = sides.shared.push(sides.made(2, lambda out: [(out / "b").write_bytes(both), (out / "c").write_bytes(b"new")]))
    assert second.sent == 3
    assert sides.shared.push(sides.made(2)).there


def test_two_writers_of_one_key_end_in_one_artifact(sides: Sides) -> None:
    made = sides.made()
    writers = [threading.Thread(target=lambda: sides.shared.push(made)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [one.key for one in sides.shared.records()] == [KEY]
    assert sides.shared.pull(KEY, sides.there) is not None


def test_two_results_for_one_key_are_told_with_makers(sides: Sides) -> None:
    sides.shared.push(sides.made())
    other = sides.there.make(KEY, ENGINE_MADE, lambda out: (out / "x").write_text("other"))[0]
    done = sides.shared.push(other)
    (said,) = [event.text for event in sides.events if event.kind == "note"]
    assert said.startswith(f"TWO RESULTS for {KEY[:12]}")
    assert said.count(socket.gethostname()) == 2
    assert (done.sent, socket.gethostname() in done.other) == (0, True)
    third = Store(sides.there.root.parent / "third", clock=time.time)
    taken = sides.shared.pull(KEY, third)
    assert taken is not None
    assert not (taken.path / "x").exists()


@pytest.mark.parametrize("path", ["../out", "/etc/forge", "a//b", "a/../../b", "."])
def test_a_listing_that_leaves_its_folder_is_not_laid_out(sides: Sides, path: str) -> None:
    """Nobody who can write there can write anywhere else."""
    made = sides.made()
    listing = (made.path.parent / "files.json").read_text().replace('"weights.bin"', f'"{path}"')
    _forged(made, listing)
    forged = sides.here.find(KEY)
    assert forged is not None
    with pytest.raises(RemoteError, match="cannot be shared"):
        sides.shared.push(forged)


def _forged(made: Artifact, listing: str) -> None:
    from blake3 import blake3
    from msgspec.structs import replace

    from forge.store.artifact import sealed, written

    home = made.path.parent
    (home / "files.json").write_text(listing)
    (home / "manifest.json").write_bytes(written(sealed(replace(made.manifest, listing=blake3(listing.encode()).hexdigest()))))


# -- accidents


def test_a_killed_upload_stays_unseen_and_goes_on_later(sides: Sides) -> None:
    made = sides.made(filled=large(2 * PART + 1))
    code = """
import sys, time; from pathlib import Path
from forge.remote import lanes; lanes.LANES = 1
from forge.remote.shared import Shared; from forge.remote.open import place; from forge.store.store import Store
tell = lambda event: print(event.kind, flush=True)
store = Store(Path(sys.argv[1]), clock=time.time)
Shared(lambda: place(sys.argv[2], 30), sys.argv[2], tell, time.time).push(store.find(sys.argv[3]))
"""
    running = child(code, sides.here.root, sides.url, KEY)
    assert running.stdout is not None
    assert "progress" in [running.stdout.readline().strip() for _ in range(2)]
    running.kill()
    running.communicate()
    assert not sides.shared.has([KEY])
    assert sides.shared.pull(KEY, sides.there) is None
    assert made.size - sides.shared.push(made).sent >= PART
    assert sides.shared.pull(KEY, sides.there) is not None


def test_a_server_killed_midway_ends_nothing_and_uploads_follow(tmp_path: Path, s3: S3) -> None:
    sides = Sides(tmp_path, f"s3://{BUCKET}/{tmp_path.name}", deadline=30.0)
    made = sides.made(filled=large(2 * PART + 1))
    first = threading.Event()

    def tell(event: Event) -> None:
        sides.events.append(event)
        if event.kind == "progress":
            first.set()

    shared = Shared(lambda: place(sides.url, 30.0), sides.url, tell, time.time)
    sender = threading.Thread(target=shared.offer, args=((made,), ("engine",)))
    sender.start()
    assert soon(lambda: first.is_set() or not sender.is_alive())
    s3.kill()
    try:
        sender.join()
    finally:
        s3.start()
    assert "`forge cache push` sends it later" in sides.events[-1].text
    assert sides.shared.records() == ()
    sides.shared.push(made)
    assert sides.shared.pull(KEY, sides.there) is not None


def test_wrong_credentials_are_told_without_them(tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"not-{SECRET}")
    with pytest.raises(StoreError) as refused:
        Sides(tmp_path, f"s3://{BUCKET}/{tmp_path.name}").shared.records()
    assert SECRET not in str(refused.value)
    assert "credentials" in str(refused.value)


# -- keeping


def test_collecting_removes_the_old_and_keeps_shared_files(sides: Sides) -> None:
    both = b"in both" * 1000
    old = sides.made(1, lambda out: [(out / "a").write_bytes(both), (out / "old").write_bytes(b"old" * 9)])
    new = sides.made(2, lambda out: (out / "b").write_bytes(both))
    sides.shared.push(old)
    sides.shared.push(new)
    assert sides.shared.collect(3600.0, dry_run=False).removed == ()
    later = Shared(lambda: place(sides.url, 5.0), sides.url, sides.events.append, lambda: time.time() + 7200)
    sides.shared.place.used(new.key)
    assert {one.key for one in later.collect(3600.0, dry_run=True).removed} == {old.key, new.key}
    sides.shared.place.drop([old.key])
    swept = sides.shared.place.sweep(frozenset(entry.blake3 for entry in new.files()), time.time() + 60, dry_run=False)
    assert swept == 27
    assert sides.shared.pull(new.key, sides.there) is not None


# -- by name


def forge(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def answer(*words: str) -> Any:
    done = forge(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def homes(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    """Go to a home of that name: verbs find it, and the shared store that may be written to."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("FORGE_REMOTE_URL", url)
    monkeypatch.setenv("FORGE_REMOTE_ACCESS", "read-write")

    def go(name: str) -> Store:
        monkeypatch.setenv("FORGE_HOME", str(tmp_path / name))
        return Store(tmp_path / name / "store", clock=time.time)

    return go


def test_the_cache_verbs_push_list_explain_pull_and_collect(homes: Callable[[str], Store]) -> None:
    homes("here").make(KEY, ENGINE_MADE, fill)
    (pushed,) = answer("cache", "push")["pushed"]
    assert (pushed["key"], pushed["sent"] > 0) == (KEY, True)
    (listed,) = answer("cache", "ls", "--remote")["artifacts"]
    assert (listed["step"], listed["by"]["host"]) == ("tiny: engine", socket.gethostname())
    there = homes("there")
    told = answer("cache", "explain", KEY[:8])
    assert (told["local"], told["by"].split(" ")[0].partition("@")[2]) == ("", socket.gethostname())
    assert told["inputs"] == {"gpu": "sm_89"}
    answer("cache", "pull", KEY[:8])
    assert there.find(KEY) is not None
    assert there.verify() == ()
    assert answer("cache", "explain", KEY)["local"]
    assert answer("cache", "gc", "--remote", "--older-than", "1h")["removed"] == []
    assert [each["key"] for each in answer("cache", "gc", "--remote", "--older-than", "0s")["removed"]] == [KEY]
    assert forge("cache", "pull", KEY[:8]).exit_code == StoreError.exit_code


def test_a_read_only_store_is_not_pushed_to(homes: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    homes("here")
    monkeypatch.delenv("FORGE_REMOTE_ACCESS")
    done = forge("cache", "push")
    assert done.exit_code == StoreError.exit_code
    assert "FORGE_REMOTE_ACCESS=read-write" in done.stderr


@pytest.mark.parametrize("address", [f"s3://user:{SECRET}@bucket/x", f"https://host/x?sig={SECRET}"])
def test_an_address_with_a_password_is_refused_and_not_repeated(address: str, homes: Callable[[str], Store]) -> None:
    homes("here")
    done = forge("cache", "ls", "--remote", address)
    assert done.exit_code == ConfigError.exit_code
    assert SECRET not in done.output + done.stderr
