"""What a checkpoint consists of, and what can be wrong with its files; shared by every origin."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast

from forge.build.sources import datasets
from forge.errors import SourceError
from forge.files.safetensors import LONGEST
from forge.schema import adapters
from forge.schema.recipe import Lora
from forge.schema.spelling import misplaced
from forge.schema.values import Calibration, FileFact, Pinned, Source, Tokenizer

TEXTS = frozenset(
    (
        *Tokenizer().files,
        "config.json",
        "hf_quant_config.json",
        "chat_template.json",
        "spiece.model",
        "vocab.txt",
        "sentencepiece.bpe.model",
        # How images are cut and scaled, for models that see.
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
    )
)
INDEXES = {".safetensors": "model.safetensors.index.json", ".bin": "pytorch_model.bin.index.json"}
PICKLES = (".bin", ".pt", ".pth")
TRAINING = re.compile(r"(training_args|optimizer|scheduler|rng_state.*)\.(bin|pt|pth)")
SHARD = re.compile(r".+-\d{5}-of-\d{5}\.(safetensors|bin)")
POINTER = b"version https://git-lfs.github.com/spec/v1\n"
POINTER_LIMIT = 1024
CHUNK = 1 << 22
CONFIGS = ("config.json", adapters.CONFIG)
"""The file that says what a checkpoint is, and the one that says it of an adapter."""


def selected(source: Source, names: Iterable[str], where: str) -> tuple[str, ...]:
    """What a build reads of ``source``, out of the files that are there: a checkpoint's, an adapter's, a data set's texts."""
    match source:
        case Calibration():
            chosen = datasets.files(names, where)
        case Lora():
            chosen = _adapter(frozenset(names), where)
        case _:
            chosen = needed(names, source.allow_pickle, where)
    for name in chosen:
        if wrong := misplaced(name):
            hint = "rename it there, or take another source"
            raise SourceError(f"a file there is called {name[:100]!a}: {wrong}", where=where, hint=hint)
    return chosen


def needed(names: Iterable[str], allow_pickle: bool, where: str) -> tuple[str, ...]:
    """The files of a checkpoint that a build reads, sorted: config, tokenizer and one set of weights.

    Only the top folder counts: original/, onnx/ and their like hold the same weights again. SourceError says what is
    missing, or that only pickled weights are there and nobody allowed them.
    """
    top = sorted({name for name in names if "/" not in name})
    if "config.json" not in top:
        raise SourceError("there is no config.json: this is no Hugging Face checkpoint", where=where, hint=_instead(top))
    weights = _one_set([name for name in top if name.endswith(".safetensors")], ".safetensors", top)
    if not weights:
        pickles = _one_set([name for name in top if name.endswith(PICKLES) and not TRAINING.fullmatch(name)], ".bin", top)
        if pickles and not allow_pickle:
            raise SourceError(
                f"the weights are pickled ({pickles[0]}), and reading a pickle can run any code",
                where=where,
                hint="take a revision with safetensors, or write `allow_pickle = true` beside the source if you trust it",
            )
        weights = pickles
    if not weights:
        raise SourceError("there are no weights (no .safetensors)", where=where, hint=_instead(top))
    return tuple(sorted({*weights, *TEXTS.intersection(top)}))


def _adapter(names: frozenset[str], where: str) -> tuple[str, ...]:
    """An adapter's two files; SourceError where one is missing."""
    wanted = (adapters.CONFIG, adapters.WEIGHTS)
    if absent := [name for name in wanted if name not in names]:
        pickled = "adapter_model.bin" in names and absent == [adapters.WEIGHTS]
        hint = "save it anew with PEFT, which writes safetensors" if pickled else "name what PEFT's save_pretrained has written"
        raise SourceError(f"there is no {absent[0]}: this is no LoRA adapter that can be read", where=where, hint=hint)
    return wanted


def stated(pinned: Pinned) -> FileFact:
    """The file that says what was pinned: config.json, or an adapter's."""
    return next(file for name in CONFIGS for file in pinned.files if file.path == name)


def apart(source: Source) -> tuple[str, ...]:
    """What keeps the pin of a data set or an adapter apart from the pin of a checkpoint at the same address."""
    return ("dataset",) if isinstance(source, Calibration) else ("adapter",) if isinstance(source, Lora) else ()


def _instead(top: list[str]) -> str:
    ggufs = [name for name in top if name.endswith(".gguf")]
    if ggufs:
        return f'it holds GGUF files: download one ({ggufs[0]}) and write `gguf = "FILE"` as the source'
    return "name the folder or repository that holds config.json and *.safetensors"


def _one_set(weights: list[str], suffix: str, top: list[str]) -> list[str]:
    """Weights often lie there twice: whole and in shards, in another precision, or as ``consolidated``."""
    whole = {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin"}[suffix]
    stem = whole.removesuffix(suffix)
    twice = [name for name in weights if name.startswith(("consolidated", "adapter_"))]
    kept = [name for name in weights if name not in twice] or twice
    shards = [name for name in kept if SHARD.fullmatch(name)]
    if whole in kept:
        return [name for name in kept if name not in shards and not re.fullmatch(rf"{stem}\.\w+{suffix}", name)]
    return [*kept, *(name for name in (INDEXES[suffix],) if shards and name in top)]


def fault(path: Path) -> str:
    """What is wrong with a file of a checkpoint as it lies on disk; empty when nothing shows."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= POINTER_LIMIT and (head := file.read(POINTER_LIMIT)).startswith(POINTER):
            return _pointer(head.decode("utf-8", "replace"))
        file.seek(0)
        if path.name in INDEXES.values():
            return _index(file.read(), path.parent)
        return _safetensors(file, size) if path.name.endswith(".safetensors") else ""


def _pointer(text: str) -> str:
    stated = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    size = stated.get("size", "")
    count = f"{int(size):,} bytes" if size.isdecimal() and len(size) < 20 else "a file"
    return f"a git-lfs pointer stands where {count} should be; run `git lfs pull` there"


def _index(text: bytes, folder: Path) -> str:
    """Shards are looked for where the index lies, so the index is to be checked after them."""
    try:
        stated = cast("dict[str, dict[str, str]]", json.loads(text))
        shards = sorted(set(stated["weight_map"].values()))
        strange = next((name for name in shards if misplaced(name)), "")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return "the index of the weights cannot be read"
    if strange:
        return f"the index of the weights names {strange[:100]!a} as a shard: {misplaced(strange)}"
    missing = [name for name in shards if not (folder / name).is_file()]
    return f"{len(missing)} of the {len(shards)} shards that it names are missing: {missing[0]}" if missing else ""


def _safetensors(file: BinaryIO, size: int) -> str:
    """Format: eight bytes of little-endian header length, a JSON header, the tensors' bytes without gaps."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LONGEST):
        return f"truncated or no safetensors file: {size:,} bytes cannot hold its header"
    try:
        header = cast("dict[str, dict[str, list[int]]]", json.loads(file.read(length)))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        claimed = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, RecursionError):
        return "the safetensors header cannot be read"
    if claimed > size:
        return f"truncated: its header promises {claimed:,} bytes, the file has {size:,}"
    return f"{size - claimed:,} bytes follow the last tensor" if claimed < size else ""


def digest(path: Path, algorithm: str) -> str:
    """``algorithm:hex`` of a file; algorithm is sha256, gitsha1 or blake3."""
    import blake3

    # Never by a map: whoever cuts a file short while it is mapped here would kill this process.
    made = blake3.blake3(max_threads=blake3.blake3.AUTO) if algorithm == "blake3" else hashlib.sha256()
    if algorithm == "gitsha1":  # what git calls a blob's id: a header with the length comes first
        made = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            made.update(chunk)
    return f"{algorithm}:{made.hexdigest()}"


def check(path: Path, fact: FileFact, where: str) -> None:
    """SourceError when ``path`` is not what ``fact`` states, or is broken in itself; the bad file is removed."""
    size = path.stat().st_size
    wrong = ""
    if fact.digest and size != fact.size:
        wrong = f"{fact.path} has {size:,} bytes, expected {fact.size:,}"
    elif fact.digest and (found := digest(path, fact.digest.partition(":")[0])) != fact.digest:
        wrong = f"{fact.path} has the right size and wrong bytes: {found}, expected {fact.digest}"
    elif broken := fault(path):
        wrong = f"{fact.path}: {broken}"
    if wrong:
        path.unlink()
        raise SourceError(wrong, where=where, hint="the file was discarded; run again to fetch it anew")
