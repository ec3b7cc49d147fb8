"""What comes from a person's own files never shares an inode with them, whatever the kind of source."""

import base64
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from checkpoints import CONFIG, TEXTS, TINY, safetensors
from forge.build.sources.folder import FolderOrigin
from forge.build.sources.gguf import GgufOrigin
from forge.build.sources.git import GitOrigin
from forge.build.sources.source import Origin
from forge.build.sources.wheel import WheelOrigin
from forge.errors import SourceError, StoreError
from forge.files import copies
from forge.files.trees import walk
from forge.repository import publish
from forge.schema.manifest import PublishedModel, Serving
from forge.schema.values import Calibration, Pinned, Role, RuntimeKind, Source
from forge.store.store import Artifact
from git_kit import Remote
from store_makers import KEY, provenance, store

HAS_LFS = shutil.which("git") and subprocess.run(("git", "lfs", "version"), capture_output=True, check=False).returncode == 0


def ignore(_done: int, _total: int) -> None:
    """Nobody watches."""


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def full(_: object) -> Usage:
    """A disk on which five bytes are free."""
    return Usage(10**9, 10**9 - 5, 5)


def folder(place: Path) -> Path:
    place.mkdir(parents=True)
    (place / "config.json").write_bytes(CONFIG)
    (place / "tokenizer.json").write_bytes(b"{}")
    (place / "model.safetensors").write_bytes(safetensors())
    return place


def of_folder(base: Path) -> tuple[Origin, Pinned]:
    folder(base / "mine" / "model")
    origin = FolderOrigin(base / "home")
    return origin, origin.pin(Source(path="mine/model"), base)


def of_linked_folder(base: Path) -> tuple[Origin, Pinned]:
    """As the Hugging Face cache lays a snapshot: links to blobs."""
    real, snapshot = folder(base / "mine" / "blobs"), base / "mine" / "snapshot"
    snapshot.mkdir()
    for file in real.iterdir():
        (snapshot / file.name).symlink_to(file)
    origin = FolderOrigin(base / "home")
    return origin, origin.pin(Source(path="mine/snapshot"), base)


def of_texts(base: Path) -> tuple[Origin, Pinned]:
    (base / "mine" / "data").mkdir(parents=True)
    (base / "mine" / "data" / "train.jsonl").write_bytes(TEXTS)
    origin = FolderOrigin(base / "home")
    return origin, origin.pin(Calibration(path="mine"), base)


def of_gguf(base: Path) -> tuple[Origin, Pinned]:
    (base / "mine").mkdir()
    (base / "mine" / "tiny.gguf").write_bytes(TINY)
    origin = GgufOrigin(base / "home")
    return origin, origin.pin(Source(gguf="mine/tiny.gguf"), base)


def of_git(base: Path, *, lfs: bool) -> tuple[Origin, Pinned]:
    if not (HAS_LFS if lfs else shutil.which("git")):
        pytest.skip("git or git-lfs is not installed")
    (base / "mine").mkdir()
    remote = Remote(base / "mine", lfs=lfs)
    remote.commit({"config.json": CONFIG, "model.safetensors": safetensors(elements=100_000)})
    origin = GitOrigin(base / "home", {"HOME": str(base), "PATH": os.environ["PATH"]})
    return origin, origin.pin(Source(git=remote.url), base)


def of_wheel(base: Path) -> tuple[Origin, Pinned]:
    (base / "mine").mkdir()
    with zipfile.ZipFile(base / "mine" / "acme_tiny-1.0-py3-none-any.whl", "w") as archive:
        sealed = base64.urlsafe_b64encode(hashlib.sha256(TINY).digest()).rstrip(b"=").decode()
        archive.writestr("acme/tiny.gguf", TINY)
        archive.writestr("acme_tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: acme-tiny\nVersion: 1.0\n")
        archive.writestr("acme_tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("acme_tiny-1.0.dist-info/RECORD", f"acme/tiny.gguf,sha256={sealed},{len(TINY)}\n")
    environ = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(base / "mine"), "PIP_CONFIG_FILE": os.devnull}
    origin = WheelOrigin(environ)
    return origin, origin.pin(Source(wheel="acme-tiny==1.0", file="acme/tiny.gguf"), base)


KINDS: dict[str, Callable[[Path], tuple[Origin, Pinned]]] = {
    "folder": of_folder,
    "folder of links": of_linked_folder,
    "texts": of_texts,
    "gguf": of_gguf,
    "git": lambda base: of_git(base, lfs=False),
    "git with lfs": lambda base: of_git(base, lfs=True),
    "wheel": of_wheel,
}


def inodes(place: Path) -> set[tuple[int, int]]:
    return {item.inode for item in walk(place) if item.is_file}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_fetched_is_the_same_file_as_a_persons_own(tmp_path: Path, kind: str) -> None:
    origin, pinned = KINDS[kind](tmp_path)
    before = inodes(tmp_path / "mine")
    origin.fetch(pinned, tmp_path / "out", ignore)
    assert len(inodes(tmp_path / "out")) >= len(pinned.files)
    assert not inodes(tmp_path / "out") & (inodes(tmp_path / "mine") | before)
    assert all(item.status.st_nlink == 1 for item in walk(tmp_path / "out") if item.is_file)


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, Artifact, Path]:
    """A person's folder, what the store made of it, and the repository that it was published into."""
    origin, pinned = of_folder(tmp_path)
    weights = tmp_path / "mine" / "model" / "model.safetensors"
    weights.chmod(0o600)

    def fill(out: Path) -> None:
        origin.fetch(pinned, out / "llama", ignore)
        (out / "llama" / "config.pbtxt").write_text("")

    entry, _ = store(tmp_path / "home").make(KEY, provenance(), fill)
    publish.publish(entry.path, tmp_path / "repository", published(), lambda text: text)
    return weights, entry, tmp_path / "repository" / "llama" / "model.safetensors"


def published() -> PublishedModel:
    serving = Serving(environment="e" * 64, backends="b" * 64)
    roles = {Role.TENSORRT_LLM: "llama"}
    return PublishedModel(name="llama", entry=KEY, keys={}, runtime=RuntimeKind.TWIN, roles=roles, serving=serving)


def test_a_checkpoint_rewritten_in_place_changes_nothing_built(built: tuple[Path, Artifact, Path]) -> None:
    weights, entry, served = built
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\7")
    assert served.read_bytes() == (entry.path / "llama" / weights.name).read_bytes() == safetensors()


def test_writing_to_a_published_file_leaves_the_checkpoint_alone(built: tuple[Path, Artifact, Path]) -> None:
    weights, _, served = built
    served.chmod(0o644)
    served.write_bytes(b"nothing")
    assert weights.read_bytes() == safetensors()
    assert stat.S_IMODE(weights.stat().st_mode) == 0o600


def test_a_private_checkpoint_is_published_for_another_user_to_serve(built: tuple[Path, Artifact, Path]) -> None:
    _, _, served = built
    assert stat.S_IMODE(served.stat().st_mode) == 0o444
    assert stat.S_IMODE(served.parent.stat().st_mode) == 0o755


def test_a_file_that_changes_while_it_is_copied_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, pinned = of_folder(tmp_path)
    weights = tmp_path / "mine" / "model" / "model.safetensors"
    monkeypatch.setattr(copies, "_PIECE", 4096)
    pieces = [0]

    def writing(*_: object) -> None:  # the filesystem shares no blocks; meanwhile somebody writes
        pieces[0] += 1
        with weights.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\7")
        raise OSError(errno.EOPNOTSUPP, "no reflink")

    monkeypatch.setattr(fcntl, "ioctl", writing)
    with pytest.raises(SourceError, match=r"changed since it was pinned"):
        origin.fetch(pinned, tmp_path / "out", ignore)
    assert pieces[0]
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_disk_without_room_is_said_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    origin, pinned = KINDS[kind](tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(StoreError, match=r"the disk is full: [\d,]+ bytes are needed, 5 are free") as caught:
        origin.fetch(pinned, tmp_path / "out", ignore)
    assert caught.value.hint == "free space there, or run `forge cache gc`"
    assert not (tmp_path / "out").exists()


def test_where_blocks_are_shared_no_room_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, pinned = of_gguf(tmp_path)
    assert isinstance(origin, GgufOrigin)
    assert origin.cost(pinned, tmp_path / "out").written in (0, len(TINY))

    def cloned(target: int, request: int, argument: object) -> int:
        if request == 0x40049409 and isinstance(argument, int):  # FICLONE: as a filesystem does that shares blocks
            os.copy_file_range(argument, target, 1 << 30)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", cloned)
    monkeypatch.setattr(shutil, "disk_usage", full)
    assert origin.cost(pinned, tmp_path / "out").written == 0
    origin.fetch(pinned, tmp_path / "out", ignore)
    assert (tmp_path / "out" / "tiny.gguf").read_bytes() == TINY


COPY = """
import resource, sys
from pathlib import Path
from forge.files import copies
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = copies.copy(Path(sys.argv[1]), Path(sys.argv[2]))
print(made.size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_file_is_copied_in_little_memory(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(256 << 20)
    done = subprocess.run(
        (sys.executable, "-c", COPY, tmp_path / "large", tmp_path / "copy"), capture_output=True, text=True, check=True
    )
    size, grown = map(int, done.stdout.split())
    assert size == 256 << 20
    assert grown < 48 << 10  # KiB


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """A filesystem that shares blocks, on a loop device."""
    maker = shutil.which("mkfs.btrfs")
    if maker is None or os.geteuid():
        pytest.skip("mkfs.btrfs is not installed, or this is not root")
    image, place = tmp_path / "image", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    place.mkdir()
    subprocess.run((maker, "-q", image), check=True, capture_output=True)
    if subprocess.run(("mount", "-o", "loop", image, place), capture_output=True, check=False).returncode:
        pytest.skip("this system mounts no loop device")
    try:
        yield place
    finally:
        subprocess.run(("umount", place), check=True)


def test_a_filesystem_that_can_shares_blocks_and_no_inode(btrfs: Path) -> None:
    original = btrfs / "mine"
    original.write_bytes(os.urandom(40 << 20))
    os.sync()
    free = shutil.disk_usage(btrfs).free
    assert copies.shares(original, btrfs / "store" / "staging")
    (btrfs / "store").mkdir()
    made = copies.copy(original, btrfs / "store" / "copy")
    os.sync()
    assert made.shared
    assert free - shutil.disk_usage(btrfs).free < 20 << 20
    content = original.read_bytes()
    original.write_bytes(b"other")
    assert (btrfs / "store" / "copy").read_bytes() == content
    assert not copies.shares(original, Path("/proc"))
