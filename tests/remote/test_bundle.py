"""One file with all that a build needs: what goes in, what is built from it elsewhere, and what is refused."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from bundle_kit import resealed
from docker_fixture import PLAIN
from fake_containers import FakeContainers
from fake_wiring import ENGINE, World
from fakes import tiny_checkpoint
from forge.api.bundle import Bundled
from forge.api.forge import Forge
from forge.api.outcome import Built
from forge.build.bundle.contents import FORMAT, Contents, Image, encode, read
from forge.build.bundle.opened import Opened, look, named_after
from forge.build.bundle.replay import PackedContainers
from forge.cli import main
from forge.errors import ForgeError, HostError
from forge.machine.containers import ContainerRun, FamilyImage, ImageBuild, ImageFacts, Line
from forge.machine.docker.containers import DockerContainers
from forge.remote.place import PART
from forge.remote.record import Builder
from forge.remote.tarred import BundleError, Packed, Packing, parts
from forge.schema.values import Host
from forge.settings import RemoteTable, Settings
from loopback_hub import loopback_hub
from patience import free_ports
from shipped import ROOT, SMOLLM2
from store_makers import child

PAGE = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
TOKEN = "hf_a-token-of-the-tests"
ENGINE_FILES = "_assets/tiny/engines/rank0.engine"


class Site:
    """One machine: a folder, a home and a world of its own; ``away`` is one that no network and no registry answers."""

    def __init__(self, root: Path, *, away: bool = False) -> None:
        self.root, self.world = root, World()
        root.mkdir(exist_ok=True)
        if away:
            self.world.origin.down = True
            self.world.containers.here = False
            # What a daemon has loaded is known to no registry: its own name for it is another one.
            self.world.containers.identity = "blake3:" + "b" * 64

    def shop(self, settings: Settings | None = None) -> Forge:
        return self.world.shop(self.root / "home", settings=settings or Settings())

    def recipe(self, name: str = "tiny", text: str = ENGINE, folder: str = "recipes") -> Path:
        file = self.root / folder / f"{name}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace('"tiny"', f'"{name}"'))
        return file

    def bundle(self, *recipes: Path, weights: bool = False) -> Bundled:
        return self.shop().bundle(recipes, self.root / "all.forge", weights=weights)

    def unbundle(self, file: Path) -> Built:
        return self.shop().unbundle(file, self.root / "laid", repository=self.root / "models")

    def told(self, kind: str) -> list[str]:
        return [event.step.partition(",")[0] for event in self.world.events if event.kind == kind]


@pytest.fixture
def here(tmp_path: Path) -> Site:
    return Site(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Site:
    return Site(tmp_path / "there", away=True)


# -- built elsewhere


def test_an_engine_is_built_bundled_and_served_elsewhere_offline(here: Site, there: Site) -> None:
    made = here.bundle(here.recipe())
    built = there.unbundle(made.file)
    assert (built.repository / ENGINE_FILES).is_file()
    assert there.world.containers.ran == []
    assert [build.dockerfile for build in there.world.containers.built] == ["loaded"]
    assert there.world.origin.fetches == 0
    assert (there.root / "laid" / "tiny.toml").read_text() == ENGINE
    assert there.shop().store.verify() == ()
    held = {one.key for one in here.shop().store.artifacts()}
    assert {model.entry for model in built.models} <= held
    taken = [each for one in there.shop().store.artifacts() for each in one.path.rglob("*") if not each.is_symlink()]
    assert [each for each in taken if each.stat().st_mode & 0o222] == [], "as what was made here, nobody writes to it"


def test_a_bundle_holds_no_weights_unless_somebody_says_so(here: Site, there: Site) -> None:
    """An engine's entry has a tokenizer and no tensors; where it may not be laid anew it goes itself."""
    plain = here.bundle(here.recipe())
    assert sorted(plain.steps) == ["tiny: entry", "toolchain"]
    safetensors = here.world.origin.files["model.safetensors"]
    assert safetensors not in plain.file.read_bytes()
    whole = here.bundle(here.recipe(), weights=True)
    assert "tiny: model" in whole.steps
    assert safetensors in whole.file.read_bytes()
    there.unbundle(whole.file)
    assert "tiny: entry" in there.told("made")


def test_what_a_shared_store_spared_reaches_the_bundle(here: Site, tmp_path: Path) -> None:
    """The entry is here, and what it was made from is not: nobody misses it, but who wants weights in the bundle."""
    pytest.importorskip("obstore", reason="a shared store is the extra `remote`: pip install 'triton-forge[remote]'")
    shop = here.shop(Settings(remote=RemoteTable(url=f"file://{tmp_path / 'shared'}", access="read-write", deadline=5.0)))
    recipe, file = here.recipe(), here.root / "all.forge"
    shop.build([recipe], repository=here.root / "models")
    shop.remove("tiny", here.root / "models")
    with shop.store.using(one.key for one in shop.store.artifacts() if one.manifest.provenance.action == "Assemble"):
        assert len(shop.store.collect().removed) > 3
    before = here.world.origin.fetches
    assert sorted(shop.bundle([recipe], file).steps) == ["tiny: entry", "toolchain"]
    assert here.world.origin.fetches == before
    assert {"tiny: model", "tiny: engine"} <= set(shop.bundle([recipe], file, weights=True).steps)
    assert here.world.origin.fetches == before + 1
    assert len(here.world.containers.ran) == 2, "the engine came from the shared store"


def test_a_record_other_than_the_stated_one_is_refused(here: Site) -> None:
    file = here.bundle(here.recipe()).file
    changed = resealed(file, lambda held: replace(held, records=dict.fromkeys(held.records, "0" * 64)))
    with pytest.raises(BundleError, match="the record of"):
        look(changed)


MISFITS: dict[str, tuple[Callable[[Contents], Contents], str]] = {
    "an artifact that nobody names": (lambda held: replace(held, records=dict([*held.records.items()][1:])), "does not hold"),
    "one that is not there": (lambda held: replace(held, records={**held.records, "k" * 64: "0" * 64}), "does not hold"),
    "a recipe that is not there": (lambda held: replace(held, texts={}), "a recipe that it names is missing"),
    "a later form": (lambda held: replace(held, format=FORMAT + 1), "a later forge has made it"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_contents_that_do_not_fit_the_file_are_refused(here: Site, what: str) -> None:
    change, why = MISFITS[what]
    changed = resealed(here.bundle(here.recipe()).file, change)
    with pytest.raises(BundleError, match=why):
        look(changed)


@pytest.mark.parametrize(
    ("rot", "why"), [(slice(0, -1), "shorter than it was made"), (slice(None, None, -1), "not what was made")]
)
def test_what_has_rotted_here_is_in_no_bundle(here: Site, rot: slice, why: str) -> None:
    recipe = here.recipe()
    here.bundle(recipe)
    (entry,) = (one for one in here.shop().store.artifacts() if one.manifest.provenance.action == "Assemble")
    place = entry.path / next(each.path for each in entry.files() if each.kind == "file" and each.size > 1)
    place.chmod(0o644)
    place.write_bytes(place.read_bytes()[rot])
    with pytest.raises(BundleError, match=why):
        here.bundle(recipe)


def test_what_could_not_be_laid_out_is_not_bundled(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    run = here.world.containers.run

    def linking(asked: ContainerRun, line: Line) -> None:
        run(asked, line)
        (asked.out / "elsewhere").symlink_to("/etc")

    monkeypatch.setattr(here.world.containers, "run", linking)
    allowed = Settings(remote=RemoteTable(push=("toolchain", "checkpoint", "engine", "weights")))
    with pytest.raises(BundleError, match=r"cannot be moved: elsewhere is a link that leads out"):
        here.shop(allowed).bundle([here.recipe()], here.root / "all.forge")
    assert not (here.root / "all.forge").exists()


def test_images_without_room_are_not_loaded(here: Site, there: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    made, engine = here.bundle(here.recipe()), there.world.containers
    monkeypatch.setattr(engine, "facts", lambda: replace(FakeContainers.facts(engine), free=1))
    with pytest.raises(HostError, match="Docker's disk is full"):
        there.unbundle(made.file)
    assert engine.loaded == []


def test_an_image_of_its_name_with_other_layers_is_another(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = Packed(here.bundle(here.recipe()).file)
    contents, engine = read(packed), here.world.containers
    over, (image, *_) = PackedContainers(engine, packed, contents), contents.images
    facts = over.inspect(image.reference)
    assert facts is not None
    other = replace(facts, content="blake3:of other layers")

    def inspect(_: str) -> ImageFacts:
        return other

    monkeypatch.setattr(engine, "inspect", inspect)
    assert over.inspect(image.reference) is None
    packed.close()


def test_a_pruned_family_image_is_made_again_for_a_bundle(here: Site) -> None:
    before = here.bundle(here.recipe())
    here.world.containers.built.clear()
    assert here.bundle(here.recipe()).images == before.images
    assert len(here.world.containers.built) == 1


def test_serving_checkpoints_itself_is_refused_until_weights_are_asked(here: Site) -> None:
    recipe = here.recipe(text=ENGINE.replace('kind = "engine"', 'kind = "llmapi"'))
    with pytest.raises(BundleError, match=r"gated or somebody's own: tiny: model \([0-9,]+ bytes\)") as error:
        here.bundle(recipe)
    assert "--with weights" in error.value.hint
    assert not (here.root / "all.forge").exists()
    assert here.world.origin.fetches == 0, "it is said before anything is fetched"
    allowed = Settings(remote=RemoteTable(push=("toolchain", "checkpoint", "engine", "weights")))
    assert "tiny: model" in here.shop(allowed).bundle([recipe], here.root / "all.forge").steps


def test_a_deployment_is_bundled_whole_and_keeps_its_paths(here: Site, there: Site) -> None:
    here.recipe("one")
    here.recipe("two")
    deployment = here.root / "deployments" / "both.toml"
    deployment.parent.mkdir()
    deployment.write_text('recipes = ["../recipes/one.toml", { recipe = "../recipes/two.toml", name = "second" }]\n')
    made = here.bundle(deployment)
    built = there.shop().unbundle(made.file, there.root / "laid")
    assert built.repository == there.root / "laid" / "model-repository"
    assert [model.name for model in built.models] == ["one", "second"]
    assert (there.root / "laid" / "deployments" / "both.toml").is_file()


def test_a_token_in_an_address_is_in_no_bundle(here: Site) -> None:
    recipe = here.recipe(text=ENGINE.replace('hub = "acme/tiny"', f'git = "https://{TOKEN}@example.com/x.git"'))
    with pytest.raises(BundleError, match="a password or a token") as error:
        here.bundle(recipe)
    assert TOKEN not in f"{error.value}{error.value.where}{error.value.hint}"


def test_a_recipe_named_by_its_whole_path_is_not_bundled(here: Site) -> None:
    deployment = here.root / "both.toml"
    deployment.write_text(f'recipes = ["{here.recipe("one")}"]\n')
    with pytest.raises(BundleError, match=r"one.toml is named by its whole path"):
        here.bundle(deployment)


def test_a_bundles_pins_hold_with_and_without_a_lock(here: Site, there: Site) -> None:
    recipe = here.recipe()
    here.shop().lock(recipe)
    made = here.bundle(recipe)
    assert "tiny.toml.lock" in look(made.file).contents.texts
    assert there.unbundle(made.file).models[0].name == "tiny"


def test_a_build_beyond_the_bundle_ends_first_naming_differences(here: Site, there: Site) -> None:
    made = here.bundle(here.recipe())
    other = {"tiny.toml": ENGINE + "[build]\nmax_batch_size = 3\n"}
    changed = resealed(made.file, lambda held: replace(held, texts=other))
    with pytest.raises(BundleError, match=r"does not hold tiny: model") as error:
        there.unbundle(changed)
    assert "in the bundle" in error.value.what
    assert not (there.root / "models").exists()


def test_another_platform_is_refused(here: Site, there: Site) -> None:
    made = here.bundle(here.recipe())
    changed = resealed(made.file, lambda held: replace(held, platform="linux-aarch64"))
    with pytest.raises(BundleError, match="made on linux-aarch64, and this machine is linux-x86_64"):
        there.unbundle(changed)


def test_recipes_are_not_laid_over_other_files(here: Site, there: Site) -> None:
    made = here.bundle(here.recipe())
    (there.root / "laid").mkdir()
    (there.root / "laid" / "tiny.toml").write_text("mine")
    with pytest.raises(BundleError, match="another file stands"):
        there.unbundle(made.file)
    assert (there.root / "laid" / "tiny.toml").read_text() == "mine"


# -- the file


def test_a_bundle_is_a_tar_with_its_contents_last(here: Site) -> None:
    with tarfile.open(here.bundle(here.recipe()).file) as tar:
        names = tar.getnames()
    assert {name.split("/")[0] for name in names[:-1]} == {"files", "keys"}
    assert names[-1] == "bundle.json"
    assert len(names) == len(set(names))


def test_an_unfinished_bundle_is_unseen_and_the_former_stays(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    made = here.bundle(here.recipe())
    before = made.file.read_bytes()
    (here.root / "recipes" / "tiny.toml").write_text(ENGINE + "[build]\nmax_batch_size = 3\n")

    def save(references: Sequence[str]) -> Iterator[bytes]:
        yield b"some"
        raise BundleError("the daemon went away")

    monkeypatch.setattr(here.world.containers, "save", save)
    with pytest.raises(BundleError, match="went away"):
        here.bundle(here.root / "recipes" / "tiny.toml")
    assert made.file.read_bytes() == before
    assert sorted(each.name for each in here.root.iterdir()) == ["all.forge", "home", "recipes"]


def test_a_writer_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    code = """
import sys, time; from pathlib import Path; from forge.remote.tarred import Packing
packing = Packing(Path(sys.argv[1])); packing.put(packing.address(b"x" * 99999, ""), b"x" * 99999)
print("there", flush=True); time.sleep(600)
"""
    running = child(code, tmp_path / "all.forge")
    assert running.stdout is not None
    assert running.stdout.readline() == "there\n"
    running.kill()
    running.communicate()
    assert list(tmp_path.iterdir()) == []


def test_a_file_waits_under_another_name_until_whole(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", 0)
    assert look(here.bundle(here.recipe()).file).held
    assert sorted(each.name for each in here.root.iterdir()) == ["all.forge", "home", "recipes"]


def test_the_bundles_python_is_used_where_here_or_named(here: Site, tmp_path: Path) -> None:
    made = here.bundle(here.recipe())
    contents = replace(look(made.file).contents, python="3.12", environments=("e" * 64,))
    packed = Packed(made.file)
    bundle = Opened(packed, contents, tmp_path)
    found = Host("3.11", "/usr/bin/python3.11", "linux-x86_64", "/opt/tritonserver")
    other = Host("3.12", "/usr/bin/python3.12", "linux-x86_64")
    assert bundle.host(found, lambda python: other if python == "3.12" else None) == other
    with pytest.raises(HostError, match=r"for Python 3\.12, and none is here") as error:
        bundle.host(found, lambda _: None)
    assert "install Python 3.12" in error.value.hint
    with pytest.raises(HostError, match="made with the Triton at /opt/t"):
        Opened(packed, replace(contents, triton="/opt/t"), tmp_path).host(found, lambda _: other)
    packed.close()


def test_something_else_is_not_replaced_by_a_bundle(here: Site) -> None:
    for mine in (b"my thesis", tarred()):
        (here.root / "all.forge").write_bytes(mine)
        with pytest.raises(BundleError, match="something else than a bundle"):
            here.bundle(here.recipe())
        assert (here.root / "all.forge").read_bytes() == mine
    with pytest.raises(BundleError, match="nothing can be written into this folder"):
        here.shop().bundle([here.recipe()], here.root / "none" / "all.forge")
    assert here.world.made() == []


@pytest.mark.parametrize("length", [0, 100, 512, 5000, -512, -1024, -1])
def test_a_truncated_bundle_is_refused_wherever_it_ends(here: Site, there: Site, length: int) -> None:
    file = here.bundle(here.recipe()).file
    whole = file.read_bytes()
    file.write_bytes(whole[:length])
    with pytest.raises(BundleError):
        there.unbundle(file)
    assert there.shop().store.root.exists() is False


def test_a_flipped_byte_is_found_wherever_it_is(here: Site, tmp_path: Path) -> None:
    """In a header, a file, a record or the contents: refused, and nothing of it is kept that is not what was made."""
    file = here.bundle(here.recipe()).file
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        members = [(member.offset, member.offset_data, member.size) for member in tar.getmembers()]
    places = [place for offset, data, size in members for place in (offset + 5, data + size // 2) if size]
    places.append(whole.rindex(b'"triton":""') + 3)  # the name of what has no value: nothing that is read changes
    for number, place in enumerate(places):
        site = Site(tmp_path / f"site{number}", away=True)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ForgeError) as error:
            site.unbundle(file)
        assert str(file) in str(error.value)
        assert site.shop().store.verify() == ()
        assert not (site.root / "models").exists()


_FILE = "files/aa/" + "a" * 64
HOSTILE: dict[str, tuple[Callable[[], tuple[tarfile.TarInfo, bytes]], str]] = {
    "a path out of it": (lambda: _member("../../etc/passwd", b"x"), "is none that forge writes"),
    "a whole path": (lambda: _member("/etc/passwd", b"x"), "is none that forge writes"),
    "a link": (lambda: _member(_FILE, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is no plain file"),
    "a hard link": (lambda: _member(_FILE, b"", type=tarfile.LNKTYPE, linkname="bundle.json"), "is no plain file"),
    "a device": (lambda: _member(_FILE, b"", type=tarfile.CHRTYPE), "is no plain file"),
    "a sparse file": (lambda: _member(_FILE, b"", type=tarfile.GNUTYPE_SPARSE), "is no plain file"),
    "a long name": (lambda: _member("././@LongLink", b"x" * 600, type=tarfile.GNUTYPE_LONGNAME), "is no plain file"),
    "a strange name": (lambda: _member("files/aa/" + "b" * 64, b"x"), "is none that forge writes"),
    "a part larger than parts are": (lambda: _member(_FILE, b"", size=PART + 1), "are the most"),
    "a size that is none": (lambda: _member("keys/aa/" + "a" * 64, b"", size=-5), "are the most"),
}
"""What a member is, and why it is refused: all that follows is out of place too, so "damaged" alone would say little."""


def _member(name: str, data: bytes, **words: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for word, value in words.items():
        setattr(info, word, value)
    return info, data


@pytest.mark.parametrize("what", HOSTILE)
def test_a_member_that_forge_would_not_write_is_refused(here: Site, what: str) -> None:
    file = here.bundle(here.recipe()).file
    whole = file.read_bytes()
    hostile, why = HOSTILE[what]
    info, data = hostile()
    head = info.tobuf(tarfile.GNU_FORMAT)
    with tarfile.open(file) as tar:
        at = tar.getmembers()[1].offset
    file.write_bytes(whole[:at] + head + data + bytes(-len(data) % 512) + whole[at:])
    with pytest.raises(BundleError, match=f"damaged: .*{why}"):
        look(file)


def test_a_member_twice_and_bytes_behind_the_end_are_refused(here: Site) -> None:
    file = here.bundle(here.recipe()).file
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        first, second = tar.getmembers()[:2]
    file.write_bytes(whole[: second.offset] + whole[first.offset : second.offset] + whole[second.offset :])
    with pytest.raises(BundleError, match="there twice"):
        look(file)
    file.write_bytes(whole + b"more")
    with pytest.raises(BundleError, match="does not end where it says"):
        look(file)


def test_texts_that_lead_out_of_their_folder_are_not_laid(here: Site, there: Site) -> None:
    made = here.bundle(here.recipe())
    changed = resealed(made.file, lambda held: replace(held, texts={**held.texts, "../../evil": "x"}))
    with pytest.raises(BundleError, match="no path inside"):
        there.unbundle(changed)
    assert not (there.root.parent / "evil").exists()


def test_a_stream_is_kept_in_parts_one_at_a_time(tmp_path: Path) -> None:
    kept: list[int] = []

    def keep(data: bytes) -> str:
        kept.append(len(data))
        return str(len(kept))

    assert parts(iter([b"x" * (PART - 1), b"yy", b"", b"z" * PART]), keep) == ("1", "2", "3")
    assert kept == [PART, PART, 1]


def test_recipes_get_a_folder_of_the_bundles_name() -> None:
    assert [named_after(Path(name)) for name in ("a/smollm2.forge", "fleet")] == ["smollm2", "fleet-recipes"]


def test_no_bundle_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "some.tar").write_bytes(tarred())
    for file, what in ((tmp_path / "some.tar", "no bundle of forge's"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(BundleError, match=what):
            look(file)


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info, data = _member("hello.txt", b"hello")
        tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


# -- the command line


def forge(*words: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def test_the_command_line_shows_what_is_inside_and_refuses_mixtures(here: Site) -> None:
    file = here.bundle(here.recipe()).file
    shown = forge("bundle", "--list", file)
    assert shown.exit_code == 0, shown.output
    assert "toolchain" in shown.output
    assert "text  tiny.toml" in shown.output
    assert json.loads(forge("bundle", "--list", file, "--json").stdout)["recipes"] == ["tiny.toml"]
    for words in (["bundle", "x.toml"], ["bundle", "-o", "x"], ["bundle", "--list", file, "-o", "x"], ["build"]):
        assert forge(*words).exit_code == 2
    mixed = forge("build", "--bundle", file, "x.toml")
    assert mixed.exit_code == 2
    assert "a bundle says itself" in mixed.output
    wrong = forge("bundle", "--list", here.root / "recipes" / "tiny.toml")
    assert wrong.exit_code == BundleError.exit_code
    assert "no bundle of forge's" in wrong.output


# -- for real


ALONE = """
import os, sys
from pathlib import Path
from forge import Forge
from forge.schema.values import Ports
file, root, *ports = sys.argv[1:]
forge = Forge.here()
built = forge.unbundle(file, Path(root, "laid"), repository=Path(root, "models"))
running = forge.serve(built.repository, Ports(*map(int, ports)))
try:
    target = forge.target("smollm2-135m-instruct", built.repository)
    prompt = forge.templated(target, [("user", "What is the capital of France? Answer in one sentence.")])
    print("said:", "".join(chunk.text for chunk in forge.generate(target.address, target.request(prompt))))
finally:
    forge.stop(running)
"""


def namespace() -> list[str]:
    """What starts a program in a network namespace of its own."""
    if shutil.which("unshare") and shutil.which("ip"):
        for words in (["unshare", "--net", "--"], ["unshare", "--map-root-user", "--net", "--"]):
            if subprocess.run([*words, "ip", "link", "set", "lo", "up"], check=False, capture_output=True).returncode == 0:
                return words
    pytest.skip("no network namespace can be made: that takes util-linux's unshare, iproute2's ip, and root or user namespaces")


@pytest.mark.slow
def test_a_real_model_is_built_and_served_without_routes(shop: Forge, smollm2: Built, home: Path, tmp_path: Path) -> None:
    """All from nothing but the file: an empty home, no address but the loopback's, no index, no hub."""
    alone = namespace()
    made = shop.bundle([SMOLLM2], tmp_path / "smollm2.forge")
    held = look(made.file)
    assert {one.action for one in held.held} == {"Run", "MakeEnvironment"}
    ports = free_ports()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "HF_", "UV_", "FORGE_"))}
    script = 'ip link set lo up && test -z "$(ip route)" && exec "$@"'
    words = (made.file, tmp_path, ports.http, ports.grpc, ports.metrics)
    done = subprocess.run(
        [*alone, "sh", "-c", script, "sh", sys.executable, "-c", ALONE, *map(str, words)],
        env={**environment, "FORGE_HOME": str(tmp_path / "empty"), "XDG_CONFIG_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "said: The capital of France is Paris." in done.stdout
    assert made.size < 1.01 * sum(one.size for one in held.held)
    shown = forge("bundle", "--list", made.file).output
    assert shape(shown) == shape(PAGE.partition("$ forge bundle --list smollm2.forge\n")[2].partition("```")[0])


GATED = """
name = "gated"
family = "llama"
[source]
hub = "acme/gated"
[runtime]
kind = "twin"
[build]
max_input_len = 64
max_seq_len = 96
"""


@pytest.mark.slow
def test_a_gated_hub_model_is_bundled_and_built_without_hub(home: Path, smollm2: Built, tmp_path: Path) -> None:
    """Its commit and config.json come out of the bundle, without a lock; the token that opened it is in none of its bytes."""
    assert smollm2.models, "its environment is used here"
    recipe = tmp_path / "recipes" / "gated.toml"
    recipe.parent.mkdir()
    recipe.write_text(GATED)
    with loopback_hub() as hub:
        commit = hub.commit("acme/gated", tiny_checkpoint(), token=TOKEN, gated=True)
        shop = Forge(home, {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN})
        with pytest.raises(BundleError, match="gated or somebody's own: gated: model"):
            shop.bundle([recipe], tmp_path / "gated.forge")
        file = shop.bundle([recipe], tmp_path / "gated.forge", weights=True).file
    assert TOKEN.encode() not in file.read_bytes()
    there = Forge(tmp_path / "home", {"PATH": os.environ["PATH"], "HF_ENDPOINT": "http://127.0.0.1:1"})
    built = there.unbundle(file, tmp_path / "laid", repository=tmp_path / "models")
    assert (built.repository / "_assets" / "gated" / "engines" / "model.safetensors").is_file()
    (fetched,) = [one for one in there.store.artifacts() if one.manifest.provenance.action == "Fetch"]
    assert fetched.manifest.provenance.inputs["source.revision"] == commit
    assert there.store.verify() == ()


def shape(text: str) -> list[str]:
    """What is shown, whatever the keys, figures and names of the day are."""
    return [re.sub(r"\S+@\S+|[0-9a-f]{12}|\S*[0-9]\S*", "?", " ".join(line.split())) for line in text.strip().splitlines()]


@pytest.mark.slow
def test_real_images_come_out_of_a_bundle_unchanged(containers: DockerContainers, tmp_path: Path) -> None:
    """One that was pulled and one made on top of it, saved by a real engine, taken away there, and loaded again."""
    key = f"bundle-{token_hex(6)}"
    text = f"FROM {PLAIN}\nLABEL what=pulled\n"
    base = containers.inspect(containers.build(ImageBuild("bundled", key, text, tmp_path / "build.log"), lambda _: None))
    assert base is not None
    reference = f"forge/bundled:{key}"
    # As a registry knows it, which no daemon says of what it has loaded.
    image = Image(
        reference=reference, id=base.id, identity=f"sha256:{'c' * 64}", base="r/i@sha256:1", content=base.content, key=key
    )
    packing = Packing(tmp_path / "images.forge")
    kept = parts(containers.save([reference]), lambda data: _kept(packing, data))
    by = Builder(user="u", host="h", system="s", forge="f", at=0.0)
    words: dict[str, Any] = {"python": "", "platform": "", "named": (), "texts": {}}
    packing.publish(encode(Contents(by=by, images=(image,), archive=kept, **words)))
    assert containers.discard(FamilyImage(reference, key))
    assert containers.inspect(reference) is None
    packed = Packed(tmp_path / "images.forge")
    over = PackedContainers(containers, packed, read(packed))
    said: list[tuple[int, int]] = []
    held = over.hold(reference, lambda done, total: said.append((done, total)))
    packed.close()
    assert (held.identity, held.content, held.labels["what"]) == (image.identity, base.content, "pulled")
    assert said[-1][0] == said[-1][1] > 0
    assert over.build(ImageBuild("bundled", key, "FROM nothing", tmp_path / "again.log"), lambda _: None) == held.id
    assert containers.discard(FamilyImage(reference, key))


def _kept(packing: Packing, data: bytes) -> str:
    blob = packing.address(data, "")
    packing.put(blob, data)
    return blob
