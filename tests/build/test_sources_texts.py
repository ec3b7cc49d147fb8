"""Data sets to calibrate with: what is fetched of one, from the hub, a folder and git, and what is never fetched."""

import gzip
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from checkpoints import CONFIG, TEXTS, safetensors
from forge.build.sources import datasets
from forge.build.sources.folder import FolderOrigin
from forge.build.sources.git import GitOrigin
from forge.build.sources.hub import HubOrigin
from forge.build.sources.source import Origin
from forge.errors import SourceError
from forge.schema.values import Calibration, Pinned, Source, SourceKind
from loopback_hub import LoopbackHub, loopback_hub

TOKEN = "hf_verysecretvalue"
FILES = {
    "README.md": b"---\nconfigs:\n- config_name: default\n---\n",
    "data/train-00000.jsonl": TEXTS,
    "data/train-00001.jsonl.gz": gzip.compress(TEXTS, mtime=0),
    "texts.py": b"raise SystemExit('a loading script ran')",
    "data/texts.py": b"raise SystemExit('a loading script ran')",
    ".gitattributes": b"",
    ".cache/seen.json": b"{}",
    "preview.png": b"no text",
}
WANTED = ("README.md", "data/train-00000.jsonl", "data/train-00001.jsonl.gz")
HUB = Calibration(hub="acme/texts")


def brought(origin: Origin, pinned: Pinned, into: Path) -> dict[str, bytes]:
    origin.fetch(pinned, into, lambda _done, _total: None)
    return {path.relative_to(into).as_posix(): path.read_bytes() for path in into.rglob("*") if path.is_file()}


def laid(folder: Path) -> Path:
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with loopback_hub() as running:
        yield running


def user(hub: LoopbackHub, home: Path, **environ: str) -> HubOrigin:
    return HubOrigin(home / "forge", {"HF_ENDPOINT": hub.url, "HOME": str(home), **environ})


def test_a_data_set_of_the_hub_is_fetched_with_subfolders(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.commit("datasets/acme/texts", FILES)
    origin = user(hub, tmp_path)
    pinned = origin.pin(HUB, tmp_path)
    assert (pinned.name, pinned.revision) == ("datasets/acme/texts", commit)
    assert tuple(file.path for file in pinned.files) == WANTED
    assert brought(origin, pinned, tmp_path / "texts") == {path: FILES[path] for path in WANTED}


def test_a_model_and_data_set_of_one_id_are_two(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit("acme/texts", {"config.json": CONFIG, "model.safetensors": safetensors()})
    origin = user(hub, tmp_path)
    assert origin.pin(Source(hub="acme/texts"), tmp_path).name == "acme/texts"
    with pytest.raises(SourceError, match="no such data set on the hub"):
        origin.pin(HUB, tmp_path)


def test_a_gated_data_set_is_refused_when_it_is_pinned(hub: LoopbackHub, tmp_path: Path) -> None:
    """And not after an hour of work."""
    hub.commit("datasets/acme/texts", FILES, token=TOKEN, gated=True)
    with pytest.raises(SourceError, match="gated: its licence has to be accepted"):
        user(hub, tmp_path).pin(HUB, tmp_path)
    let_in = user(hub, tmp_path, HF_TOKEN=TOKEN)
    assert brought(let_in, let_in.pin(HUB, tmp_path), tmp_path / "texts").keys() == set(WANTED)


def test_bytes_other_than_the_pinned_ones_are_not_taken(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit("datasets/acme/texts", FILES)
    origin = user(hub, tmp_path)
    pinned = origin.pin(HUB, tmp_path)
    hub.swapped["data/train-00000.jsonl"] = TEXTS[::-1]
    with pytest.raises(SourceError, match=r"train-00000\.jsonl has the right size and wrong bytes"):
        brought(origin, pinned, tmp_path / "texts")


def test_a_folder_of_texts_is_taken_with_its_subfolders(tmp_path: Path) -> None:
    laid(tmp_path / "mine")
    origin = FolderOrigin(tmp_path / "home")
    pinned = origin.pin(Calibration(path="mine"), tmp_path)
    assert tuple(file.path for file in pinned.files) == WANTED
    assert brought(origin, pinned, tmp_path / "texts") == {path: FILES[path] for path in WANTED}


def test_texts_that_lfs_never_brought_are_named(tmp_path: Path) -> None:
    laid(tmp_path / "mine")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n"
    (tmp_path / "mine" / "data" / "train-00000.jsonl").write_bytes(pointer)
    with pytest.raises(SourceError, match="git-lfs pointer"):
        FolderOrigin(tmp_path / "home").pin(Calibration(path="mine"), tmp_path)


def committed(folder: Path, *, lfs: bool) -> str:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)

    git("init", "--quiet", "--initial-branch=main")
    if lfs:
        git("lfs", "install", "--local")
        (folder / ".gitattributes").write_text("*.gz filter=lfs diff=lfs merge=lfs -text\n")
    git("config", "uploadpack.allowFilter", "true")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    git("add", "--all")
    git("commit", "--quiet", "-m", "texts")
    return folder.as_uri()


@pytest.mark.parametrize("lfs", [False, True])
def test_a_git_repository_of_texts_is_taken_with_its_subfolders(tmp_path: Path, lfs: bool) -> None:
    if lfs and subprocess.run(["git", "lfs", "version"], capture_output=True, check=False).returncode:
        pytest.skip("git-lfs is not installed")
    url = committed(laid(tmp_path / "mine"), lfs=lfs)
    origin = GitOrigin(tmp_path / "home", {"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"})
    pinned = origin.pin(Calibration(git=url), tmp_path)
    assert tuple(file.path for file in pinned.files) == WANTED
    assert brought(origin, pinned, tmp_path / "texts") == {path: FILES[path] for path in WANTED}


def test_one_commit_answers_for_checkpoint_and_texts_apart(tmp_path: Path) -> None:
    folder = laid(tmp_path / "mine")
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "model.safetensors").write_bytes(safetensors())
    url = committed(folder, lfs=False)
    origin = GitOrigin(tmp_path / "home", {"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"})
    commit = origin.pin(Source(git=url), tmp_path).revision
    model = origin.pin(Source(git=url, revision=commit), tmp_path)
    texts = origin.pin(replace(Calibration(git=url), revision=commit), tmp_path)
    assert (model.kind, texts.kind) == (SourceKind.GIT, SourceKind.GIT)
    assert {file.path for file in model.files} == {"config.json", "model.safetensors"}
    assert {file.path for file in texts.files} == set(WANTED)


@pytest.mark.parametrize("name", ["../up.json", "/etc/up.json", "data/../../up.json", ".hidden/x.json", "__MACOSX/x.json"])
def test_nothing_is_taken_that_would_lie_outside_or_hidden(name: str) -> None:
    assert datasets.files([name, "a.json"], "here") == ("a.json",)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "no texts to calibrate with"),
        (("README.md", "dataset_infos.json"), "no texts to calibrate with"),
        (("config.json", "model.safetensors"), "no texts to calibrate with"),
        (("cnn_dailymail.py",), "made by a script"),
    ],
)
def test_what_holds_no_texts_is_refused_with_forms_that_do(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        datasets.files(names, "here")
    assert ".parquet" in caught.value.hint


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.zst", "deep/er/a.csv", "a.txt.gz", "train.json"])
def test_every_form_that_the_data_set_library_reads_is_taken(name: str) -> None:
    assert datasets.files([name, "README.md"], "here") == tuple(sorted(("README.md", name)))
