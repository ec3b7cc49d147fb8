"""Small answers kept under forge's home, of origins and images: each in a file named by the question."""

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from forge.errors import SourceError
from forge.model import Checkpoint

T = TypeVar("T")


def _file(folder: Path, question: bytes) -> Path:
    import blake3

    return folder / f"{blake3.blake3(question).hexdigest()[:40]}.json"


def record(folder: Path, question: bytes, answer: object) -> None:
    """Keep an answer; a reader sees the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".new-", delete=False) as file:
        file.write(msgspec.json.encode(answer))
    os.replace(file.name, _file(folder, question))


def recall(folder: Path, question: bytes, kind: type[T]) -> T | None:
    """The answer that was kept, or None; an unreadable one counts as none."""
    try:
        return msgspec.json.decode(_file(folder, question).read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


@dataclass(frozen=True)
class Records:
    """The Answers port in one folder; one that cannot be written keeps nothing."""

    folder: Path

    def recall(self, question: str) -> str | None:
        return recall(self.folder, question.encode(), str)

    def record(self, question: str, answer: str) -> None:
        with suppress(OSError):
            record(self.folder, question.encode(), answer)


def checkpoint(text: bytes, where: str) -> Checkpoint:
    """config.json's text as a Checkpoint; SourceError where it is no JSON object."""
    try:
        return Checkpoint(msgspec.json.decode(text, type=dict[str, object]))
    except msgspec.DecodeError as error:
        raise SourceError(f"config.json cannot be read: {error}", where=where) from None
