"""What a build takes of a person's own files: said beforehand by a plan, down to the byte, and no inode of it afterwards."""

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pytest
from click.testing import CliRunner

from checkpoints import TINY
from fake_wiring import FakeWiring, World
from fakes import LLAMA, tiny_checkpoint
from forge.api.forge import Forge
from forge.build.sources.folder import FolderOrigin
from forge.build.sources.gguf import GgufOrigin
from forge.build.sources.git import GitOrigin
from forge.build.sources.source import Origin
from forge.build.sources.wheel import WheelOrigin
from forge.cli import main
from forge.files import copies
from forge.files.trees import walk
from forge.plan.preview import Copy, How
from forge.plan.steps import Stage
from forge.schema.values import SourceKind
from git_kit import Remote, needs_lfs
from wheel_kit import wheel

TWIN = 'name = "tiny"\n[source]\npath = "mine/large"\n[runtime]\nkind = "twin"\n'
OF_GGUF = (
    'name = "tiny"\n[source]\ngguf = "mine/tiny.gguf"\n[build]\nmax_input_len = 8\nmax_seq_len = 16\n[runtime]\nkind = "twin"\n'
)
TEXTS = """
name = "tiny"
[source]
path = "mine/large"
[runtime]
kind = "engine"
image = "25.08"
gpus = "none"
[convert]
quantization = "fp8"
[convert.calibration]
path = "mine/texts"
"""
DRAFT_TARGET = """
name = "tiny"
family = "llama"
variant = "draft-target"
[source]
path = "mine/large"
[draft]
path = "mine/small"
[runtime]
kind = "engine"
image = "25.08"
gpus = "none"
"""
EAGLE = """
name = "tiny"
variant = "eagle"
[source]
path = "mine/large"
[draft]
path = "mine/small"
[runtime]
kind = "llmapi"
image = "25.09"
"""
OF_WHEEL = 'family = "llama"\n' + OF_GGUF.replace(
    'gguf = "mine/tiny.gguf"', 'wheel = "tiny-model==1.0"\nfile = "tiny_model/tiny.gguf"'
)
RECIPES = {"folder": TWIN, "gguf": OF_GGUF, "texts": TEXTS, "draft-target": DRAFT_TARGET, "eagle": EAGLE, "wheel": OF_WHEEL}


class OwnFiles(FakeWiring):
    """Fakes, but for what reads a person's own files."""

    def __init__(self, home: Path, world: World) -> None:
        super().__init__(home, world)
        self._home, self._made_up = home, world.origin

    @cached_property
    def origins(self) -> Mapping[SourceKind, Origin]:
        environ = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self._home.parent / "mine")}
        real: dict[SourceKind, Origin] = {
            SourceKind.PATH: FolderOrigin(self._home),
            SourceKind.GGUF: GgufOrigin(self._home),
            SourceKind.GIT: GitOrigin(self._home, environ),
            SourceKind.WHEEL: WheelOrigin(environ),
        }
        return {**dict.fromkeys(SourceKind, self._made_up), **real}


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    """A Forge, and a person's files in ``mine``."""
    for name in ("large", "small"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for path, content in tiny_checkpoint({**LLAMA, "draft_vocab_size": 32} if name == "small" else LLAMA).items():
            (tmp_path / "mine" / name / path).write_bytes(content)
    (tmp_path / "mine" / "texts").mkdir()
    (tmp_path / "mine" / "texts" / "train.jsonl").write_bytes(b'{"text": "a few words"}\n')
    (tmp_path / "mine" / "tiny.gguf").write_bytes(TINY)
    wheel(tmp_path / "mine", TINY, file="tiny_model/tiny.gguf")
    return Forge(tmp_path / "home", {}, world.events.append, OwnFiles(tmp_path / "home", world))


def written(folder: Path, kind: str) -> Path:
    (folder / "tiny.toml").write_text(RECIPES[kind])
    return folder / "tiny.toml"


def taken(shop: Forge, recipe: Path) -> dict[str, Copy]:
    """Step -> what its copy costs, of those that copy."""
    return {step.name: step.copy for step in shop.outlook(shop.plan([recipe])) if step.copy}


def make(shop: Forge, recipe: Path, kind: str) -> None:
    """Build it; the fake image makes one engine and not two, so of a pair what its engines are made from."""
    if kind == "draft-target":
        shop.make([recipe], Stage.FETCH)
    else:
        shop.build([recipe], repository=recipe.parent / "models")


def filesystem(monkeypatch: pytest.MonkeyPatch, *, shares: bool) -> None:
    """From now on as one that shares blocks, or does not."""

    def told(_source: Path, _folder: Path) -> bool:
        return shares

    monkeypatch.setattr(copies, "shares", told)


def bytes_of(place: Path) -> int:
    return sum(item.status.st_size for item in walk(place) if item.is_file) if place.is_dir() else place.stat().st_size


@pytest.mark.parametrize("kind", RECIPES)
def test_no_source_shares_an_inode_with_what_is_built(shop: Forge, tmp_path: Path, kind: str) -> None:
    make(shop, written(tmp_path, kind), kind)
    own = {item.inode for item in walk(tmp_path / "mine") if item.is_file}
    made = [item for item in walk(tmp_path / "home") if item.is_file]
    made += [item for item in walk(tmp_path / "models") if item.is_file] if (tmp_path / "models").is_dir() else []
    assert own
    assert len(made) > len(own)
    assert not own & {item.inode for item in made}


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("folder", {"tiny: model": "large"}),
        ("gguf", {"tiny: model": "tiny.gguf"}),
        ("texts", {"tiny: model": "large", "tiny: calibration": "texts"}),
        ("draft-target", {"tiny: model": "large", "tiny: draft": "small"}),
        ("eagle", {"tiny: model": "large", "tiny: draft": "small"}),
    ],
)
def test_a_plan_says_what_copies_will_write_or_have_written(
    shop: Forge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    wanted: Mapping[str, str],
    shares: bool,
) -> None:
    filesystem(monkeypatch, shares=shares)
    sizes = {step: bytes_of(tmp_path / "mine" / place) for step, place in wanted.items()}
    recipe, how = written(tmp_path, kind), How.SHARED if shares else How.COPIED
    assert taken(shop, recipe) == {step: Copy(size, 0 if shares else size, how) for step, size in sizes.items()}
    make(shop, recipe, kind)
    assert taken(shop, recipe) == {step: Copy(size, 0, How.HELD) for step, size in sizes.items()}


def test_a_wheel_pip_finds_here_is_copied_beside_its_file(shop: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem(monkeypatch, shares=True)
    recipe = written(tmp_path, "wheel")
    (step,) = [step for step in shop.outlook(shop.plan([recipe])) if step.copy]
    both = len(TINY) + bytes_of(next((tmp_path / "mine").glob("*.whl")))
    assert (step.name, step.size, step.copy) == ("tiny: model", len(TINY), Copy(len(TINY), both, How.COPIED))
    shop.build([recipe], repository=tmp_path / "models")
    (step,) = [step for step in shop.outlook(shop.plan([recipe])) if step.name == "tiny: model"]
    assert (step.held, step.copy) == (True, None), "nobody asks pip where it came from"


@needs_lfs
@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("shares", [True, False])
def test_what_lfs_keeps_on_this_machine_can_share_blocks(
    shop: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool, bare: bool
) -> None:
    filesystem(monkeypatch, shares=shares)
    remote = Remote(tmp_path / "mine", lfs=True)
    files = tiny_checkpoint(LLAMA)
    remote.commit(files)
    url = remote.url if bare else remote.work.as_uri()
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TWIN.replace('path = "mine/large"', f'git = "{url}"'))
    size = sum(map(len, files.values()))
    packed = size - len(files["model.safetensors"])
    assert 0 < packed < size
    assert taken(shop, recipe) == {"tiny: model": Copy(size, packed if shares else size, How.COPIED)}
    make(shop, recipe, "git")
    assert taken(shop, recipe) == {"tiny: model": Copy(size, 0, How.HELD)}


def test_what_comes_from_elsewhere_is_no_copy(world: World, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TWIN.replace('path = "mine/large"', 'hub = "acme/tiny"'))
    assert taken(world.shop(tmp_path / "home"), tmp_path / "tiny.toml") == {}


def test_finding_it_out_leaves_nothing(shop: Forge, tmp_path: Path) -> None:
    recipe = written(tmp_path, "draft-target")
    shop.plan([recipe])  # what it remembers of files stands there from now on

    def seen() -> dict[str, tuple[int, int]]:
        return {str(item.path): (item.status.st_mtime_ns, item.status.st_size) for item in walk(tmp_path)}

    before = seen()
    assert taken(shop, recipe)
    assert seen() == before


@pytest.mark.parametrize(
    ("shares", "words"), [(True, "first build; shares blocks with your files, 0 B are copied"), (False, "first build; copies ")]
)
def test_the_command_says_it(shop: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool, words: str) -> None:
    filesystem(monkeypatch, shares=shares)

    def here(_: object, **_options: object) -> Forge:
        return shop

    monkeypatch.setattr(Forge, "here", here)
    recipe = str(written(tmp_path, "folder"))
    shown = CliRunner().invoke(main, ["plan", recipe]).stdout.splitlines()
    (line,) = [line for line in shown if line.startswith("tiny: model")]
    assert words in line
    size = bytes_of(tmp_path / "mine" / "large")
    steps = json.loads(CliRunner().invoke(main, ["plan", recipe, "--json"]).stdout)["steps"]
    said = {step["name"]: step["copy"] for step in steps}
    assert said["tiny: model"] == {
        "size": size,
        "written": 0 if shares else size,
        "how": "shares blocks" if shares else "copied",
    }
    assert said["tiny: entry"] is None
    shop.build([recipe], repository=tmp_path / "models")
    (line,) = [
        line for line in CliRunner().invoke(main, ["plan", recipe]).stdout.splitlines() if line.startswith("tiny: model")
    ]
    assert line.endswith("already in the store")
