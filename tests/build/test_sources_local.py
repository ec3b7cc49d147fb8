"""Folders and GGUF files of this machine as sources."""

import os
import time
from pathlib import Path

import pytest

from checkpoints import CONFIG, TINY, gguf, pointer, safetensors
from forge.build.sources.checkpoint_files import needed
from forge.build.sources.folder import Digests, FolderOrigin
from forge.build.sources.gguf import GgufOrigin
from forge.errors import SourceError
from forge.schema.values import Pinned, Source, SourceKind


def write(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name.replace("_dot_", ".")).write_bytes(data)
    return folder


def checkpoint(folder: Path, fill: int = 1) -> Path:
    return write(folder, config_dot_json=CONFIG, model_dot_safetensors=safetensors(fill), notes_dot_md=b"mine")


def pin(home: Path, base: Path, folder: str = "model") -> Pinned:
    return FolderOrigin(home).pin(Source(path=folder), base)


def test_a_folder_is_pinned_by_its_needed_files_digests(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model")
    pinned = pin(tmp_path / "home", tmp_path)
    assert (pinned.kind, pinned.name, pinned.revision) == (SourceKind.PATH, "model", "")
    assert [file.path for file in pinned.files] == ["config.json", "model.safetensors"]
    assert all(file.digest.startswith("blake3:") for file in pinned.files)
    assert FolderOrigin(tmp_path / "home").read(pinned).architectures == ("LlamaForCausalLM",)


def test_the_same_folder_elsewhere_differs_in_its_location_only(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a" / "model")
    checkpoint(tmp_path / "b" / "model")
    first, second = (pin(tmp_path / "home", tmp_path / base) for base in ("a", "b"))
    assert first.files == second.files
    assert first.location != second.location


def test_another_byte_is_another_pin(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model")
    before = pin(tmp_path / "home", tmp_path)
    checkpoint(tmp_path / "model", fill=2)
    assert pin(tmp_path / "home", tmp_path).files != before.files


def later() -> int:
    """A minute from now, in ns: what was written just now has been lying there since."""
    return time.time_ns() + 60 * 10**9


def test_a_second_pin_trusts_an_untouched_files_remembered_digest(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "model") / "model.safetensors"
    made = Digests(tmp_path / "home", later).of(weights)
    for note in (tmp_path / "home" / "digests").iterdir():  # whoever does not read the file believes this
        note.write_bytes(note.read_bytes().replace(made.encode(), b"blake3:remembered"))
    assert Digests(tmp_path / "home").of(weights) == "blake3:remembered"
    assert Digests(tmp_path / "another-home").of(weights) == made


def test_a_file_rewritten_with_its_time_set_back_is_reread(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "model") / "model.safetensors"
    before, seen = Digests(tmp_path / "home", later).of(weights), weights.stat()
    time.sleep(0.05)  # kernels before 6.13 count times in ticks
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\7")
    os.utime(weights, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert Digests(tmp_path / "home").of(weights) != before


def test_a_file_written_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "model") / "model.safetensors"
    Digests(tmp_path / "home").of(weights)
    assert not (tmp_path / "home" / "digests").exists()


def test_a_fetch_copies_and_leaves_the_users_files_alone(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "model.safetensors").chmod(0o640)
    pinned = pin(tmp_path / "home", tmp_path)
    seen: list[tuple[int, int]] = []
    FolderOrigin(tmp_path / "home").fetch(pinned, tmp_path / "out", lambda done, total: seen.append((done, total)))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == safetensors()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o640
    assert seen[-1][0] == seen[-1][1] == sum(file.size for file in pinned.files)


def test_a_link_to_a_file_elsewhere_becomes_a_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", config_dot_json=CONFIG)
    (tmp_path / "blob").write_bytes(safetensors())
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    pinned = pin(tmp_path / "home", tmp_path)
    FolderOrigin(tmp_path / "home").fetch(pinned, tmp_path / "out", lambda done, total: None)
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == safetensors()


def test_a_folder_that_changes_between_pin_and_fetch_is_named(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model")
    pinned = pin(tmp_path / "home", tmp_path)
    checkpoint(tmp_path / "model", fill=3)
    with pytest.raises(SourceError, match=r"model\.safetensors changed since it was pinned"):
        FolderOrigin(tmp_path / "home").fetch(pinned, tmp_path / "out", lambda done, total: None)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (pointer(123456), r"a git-lfs pointer stands where 123,456 bytes should be"),
        (safetensors()[:-4], r"truncated: its header promises 20,0\d\d bytes"),
        (safetensors()[:20], r"cannot hold its header"),
        (b"", r"0 bytes cannot hold its header"),
        (b"\x10\0\0\0\0\0\0\0not json at all.", r"header cannot be read"),
        (b"\x02\0\0\0\0\0\0\0[]", r"header cannot be read"),
        (safetensors() + b"more", r"4 bytes follow the last tensor"),
    ],
)
def test_weights_that_are_none_are_found_before_anything_is_built(tmp_path: Path, weights: bytes, said: str) -> None:
    write(tmp_path / "model", config_dot_json=CONFIG, model_dot_safetensors=weights)
    with pytest.raises(SourceError, match=said):
        pin(tmp_path / "home", tmp_path)


def test_a_missing_shard_that_the_index_names_is_named(tmp_path: Path) -> None:
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    folder = write(tmp_path / "model", config_dot_json=CONFIG)
    (folder / "model.safetensors.index.json").write_bytes(index)
    (folder / "model-00001-of-00002.safetensors").write_bytes(safetensors())
    with pytest.raises(SourceError, match=r"model-00002-of-00002\.safetensors"):
        pin(tmp_path / "home", tmp_path)


def test_a_missing_folder_and_a_file_there_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match="no such folder") as missing:
        pin(tmp_path / "home", tmp_path, "nowhere")
    with pytest.raises(SourceError, match="no such folder") as file:
        pin(tmp_path / "home", tmp_path, "file.gguf")
    assert "the recipe's folder" in missing.value.hint
    assert "gguf" in file.value.hint


CHOICES = [
    (["model.safetensors", "consolidated.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
    (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
    (
        ["model-00001-of-00001.safetensors", "model.safetensors.index.json", "consolidated.00.pth"],
        ["model-00001-of-00001.safetensors", "model.safetensors.index.json"],
    ),
    (["medusa_lm_head.safetensors", "medusa_lm_head.pt"], ["medusa_lm_head.safetensors"]),
    (["model.safetensors", "tf_model.h5", "flax_model.msgpack", "x.gguf", "onnx/m.onnx"], ["model.safetensors"]),
    (["model.safetensors", "tokenizer.model", "chat_template.jinja"], None),
]


@pytest.mark.parametrize(("names", "kept"), CHOICES)
def test_one_set_of_weights_is_chosen_where_several_lie(names: list[str], kept: list[str] | None) -> None:
    wanted = sorted(["config.json", *(names if kept is None else kept)])
    assert list(needed(["config.json", *names], False, "here")) == wanted


def test_the_pickles_of_a_training_run_are_no_weights() -> None:
    names = ["config.json", "optimizer.pt", "training_args.bin", "pytorch_model.bin"]
    assert list(needed(names, True, "here")) == ["config.json", "pytorch_model.bin"]
    with pytest.raises(SourceError, match="no weights"):
        needed(["config.json", "training_args.bin"], True, "here")


# -- GGUF


def test_a_gguf_is_pinned_and_read_in_hugging_faces_terms(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(TINY)
    origin = GgufOrigin(tmp_path / "home")
    pinned = origin.pin(Source(gguf="tiny.gguf"), tmp_path)
    assert (pinned.kind, pinned.name, pinned.files[0].path) == (SourceKind.GGUF, "tiny.gguf", "tiny.gguf")
    assert origin.read(pinned).architectures == ("LlamaForCausalLM",)
    assert origin.read(pinned).config["hidden_size"] == 4
    origin.fetch(pinned, tmp_path / "out", lambda done, total: None)
    assert (tmp_path / "out" / "tiny.gguf").read_bytes() == TINY


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TINY[:-60], "truncated"),
        (TINY[:100], "truncated"),
        (b"not a gguf at all, but long enough", "no GGUF file"),
        (pointer(5), "no GGUF file"),
        (b"", "no GGUF file"),
        (gguf({"general.architecture": "mamba"}, {}), "architecture 'mamba' cannot be converted"),
        (gguf({}, {}), "the header has no general.architecture"),
    ],
)
def test_a_gguf_that_cannot_be_used_is_refused_in_words(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(SourceError, match=said):
        GgufOrigin(tmp_path / "home").pin(Source(gguf="bad.gguf"), tmp_path)


def test_a_part_of_a_gguf_says_how_to_merge_it(tmp_path: Path) -> None:
    (tmp_path / "big-00001-of-00003.gguf").write_bytes(TINY)
    with pytest.raises(SourceError, match="one of 3 parts"):
        GgufOrigin(tmp_path / "home").pin(Source(gguf="big-00001-of-00003.gguf"), tmp_path)
