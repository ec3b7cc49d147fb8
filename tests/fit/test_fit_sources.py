"""How ``forge fit`` learns of a checkpoint: headers by range, this machine's GPUs by nvidia-smi, and no weights."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import CONFIG, pointer, safetensors
from forge.build.sources.folder import FolderOrigin, headers
from forge.build.sources.hub import HubOrigin
from forge.errors import SourceError
from forge.files.safetensors import Tensor, length, parse
from forge.machine.gpus import host_memory, present
from forge.schema.values import MIB, Source
from loopback_hub import LoopbackHub, loopback_hub

NAME = "acme/tiny"
LARGE = 2_000_000
WANTED = (Tensor("w", "F32", (LARGE,)),)
FILES = {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": safetensors(elements=LARGE)}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with loopback_hub() as running:
        yield running


def origin(hub: LoopbackHub, home: Path, **environ: str) -> HubOrigin:
    return HubOrigin(home, {"HF_ENDPOINT": hub.url, "HOME": str(home), **environ})


def test_the_hub_is_asked_for_headers_alone(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit(NAME, FILES)
    asker = origin(hub, tmp_path)
    assert asker.tensors(asker.pin(Source(hub=NAME), tmp_path)) == WANTED
    asked = [each for each in hub.requests if each.path.endswith(".safetensors")]
    assert [each.status for each in asked] == [206]
    assert all(int(each.range.rpartition("-")[2]) < 200_000 for each in asked)


def test_headers_of_a_digest_are_asked_once_then_held_offline(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit(NAME, FILES)
    asker = origin(hub, tmp_path)
    pinned = asker.pin(Source(hub=NAME), tmp_path)
    asker.tensors(pinned)
    count = len(hub.requests)
    assert origin(hub, tmp_path, HF_HUB_OFFLINE="1").tensors(pinned) == WANTED
    assert len(hub.requests) == count


def test_a_header_that_is_none_is_named(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit(NAME, {**FILES, "model.safetensors": b"\xff" * 100_000})
    asker = origin(hub, tmp_path)
    with pytest.raises(SourceError, match="safetensors"):
        asker.tensors(asker.pin(Source(hub=NAME), tmp_path))


def test_a_gated_repository_says_so_and_hides_the_token(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit(NAME, FILES, token="hf_right", gated=True)
    asker = origin(hub, tmp_path, HF_TOKEN="hf_verysecret")
    with pytest.raises(SourceError, match="gated") as caught:
        asker.tensors(asker.pin(Source(hub=NAME), tmp_path))
    assert "hf_verysecret" not in str(caught.value)


def test_a_folder_gives_all_its_shards_headers_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shards = {"model-00001-of-00002.safetensors": 10, "model-00002-of-00002.safetensors": 20}
    for name, elements in shards.items():
        (folder / name).write_bytes(safetensors(elements=elements))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(shards))}))
    (folder / "config.json").write_bytes(CONFIG)
    reader = FolderOrigin(tmp_path / "home")
    found = reader.tensors(reader.pin(Source(path="model"), tmp_path))
    assert [each.shape for each in found] == [(10,), (20,)]


def test_a_pointer_where_weights_should_be_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(pointer(5))
    with pytest.raises(SourceError, match="no safetensors file"):
        headers(tmp_path, ["model.safetensors"])


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\0" * 8, b"\xff" * 8])
def test_a_length_that_no_file_has_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no safetensors file"):
        length(content)


@pytest.mark.parametrize("text", [b"[]", b'{"w": 1}', b'{"w": {}}', b"not json"])
def test_what_is_no_header_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json has words of its own for what is no JSON
        parse(text)


def test_a_tensor_knows_its_bytes_by_its_dtype() -> None:
    sizes = {dtype: Tensor("w", dtype, (3, 2)).size for dtype in ("F64", "F32", "BF16", "F8_E4M3", "I32", "U8", "F4")}
    assert sizes == {"F64": 48, "F32": 24, "BF16": 12, "F8_E4M3": 6, "I32": 24, "U8": 6, "F4": 3}


# -- this machine


def smi(folder: Path, body: str) -> dict[str, str]:
    """An environment in which nvidia-smi is this script."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return {"PATH": str(folder), "HF_TOKEN": "hf_verysecret"}


def test_nvidia_smi_finds_a_driver_by_the_library_path_alone(tmp_path: Path) -> None:
    environ = smi(tmp_path, "[ \"$LD_LIBRARY_PATH\" = /driver ] && echo '24564, 20000, 8.9, NVIDIA GeForce RTX 4090'")
    assert present(environ) == ()
    assert [gpu.capability for gpu in present({**environ, "LD_LIBRARY_PATH": "/driver"})] == ["8.9"]


def test_gpus_are_what_nvidia_smi_says_with_free_memory(tmp_path: Path) -> None:
    rows = "81559, 80994, 9.0, NVIDIA H100 80GB HBM3\n24564, 20000, 8.9, NVIDIA GeForce RTX 4090"
    first, second = present(smi(tmp_path, f"printf '%s\\n' '{rows}'"))
    assert (first.name, first.memory, first.free, first.capability) == (
        "NVIDIA H100 80GB HBM3",
        81559 * MIB,
        80994 * MIB,
        "9.0",
    )
    assert second.available == 20000 * MIB


def test_a_gpu_that_shares_the_machines_memory_is_not_judged(tmp_path: Path) -> None:
    assert present(smi(tmp_path, "echo '[N/A], [N/A], 12.1, NVIDIA GB10'")) == ()


@pytest.mark.parametrize("body", ["exit 9", "echo 'NVIDIA-SMI has failed'; exit 9", "true", "echo nonsense"])
def test_a_driver_that_does_not_answer_means_no_gpu(tmp_path: Path, body: str) -> None:
    assert present(smi(tmp_path, body)) == ()


def test_without_nvidia_smi_there_is_no_gpu(tmp_path: Path) -> None:
    assert present({"PATH": str(tmp_path)}) == ()


def test_free_memory_is_what_the_kernel_says_is_available(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n")
    assert host_memory(file) == 8000000 * 1024
    assert host_memory(tmp_path / "nowhere") == 0
    file.write_text("MemTotal: lots\n")
    assert host_memory(file) == 0
