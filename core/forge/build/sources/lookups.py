"""Small answers kept under forge's home, of origins and images: each in a file named by the question."""

import os
import re
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from forge.errors import Problem, SourceError, StoreError
from forge.files import copies, trees
from forge.machine.bonds import temporary
from forge.schema.spelling import is_digest
from forge.schema.values import Checkpoint, FileFact, Pinned, Source

T = TypeVar("T")
COMMIT = re.compile(r"[0-9a-f]{40}")
ROOM = "free space there, or run `forge cache gc`"


def place(home: Path, say: Callable[[str], None]) -> Path:
    """Where origins keep what they learn: ``home``, or a folder that goes with this process where nothing can be kept there."""
    if (problem := refused(home)) is None:
        return home
    say(f"FORGE_HOME ({home}): {problem.what}; what is learnt is not kept, and nothing can be built")
    return Path(tempfile.mkdtemp(prefix="home-", dir=temporary()))


def refused(home: Path) -> Problem | None:
    """Why nothing can be kept in ``home``, which is made where it is not there yet."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return Problem(str(home), f"cannot be made: {error.strerror or error}", trees.ELSEWHERE)
    if os.access(home, os.W_OK | os.X_OK):
        return None
    return Problem(str(home), "cannot be written", "make it writable for this user, or set FORGE_HOME to a folder that is")


def _file(folder: Path, question: bytes) -> Path:
    import blake3

    return folder / f"{blake3.blake3(question).hexdigest()[:40]}.json"


def record(folder: Path, question: bytes, answer: object) -> None:
    """Keep an answer; a reader sees the old one or the new one. A disk that refuses costs the memory of it and no more."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".new-", delete=False) as file, _dropped(file.name):
            file.write(msgspec.json.encode(answer))
            file.flush()
            os.replace(file.name, _file(folder, question))


@contextmanager
def _dropped(unfinished: str) -> Generator[None]:
    """Leave no half-written file behind."""
    try:
        yield
    except OSError:
        os.unlink(unfinished)
        raise


def recall(folder: Path, question: bytes, kind: type[T]) -> T | None:
    """The answer that was kept, or None; an unreadable one counts as none."""
    try:
        return msgspec.json.decode(_file(folder, question).read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeError, RecursionError):
        return None


class OutOfReachError(SourceError):
    """Who has a source could not be asked; what is held may still do."""


def latest(folder: Path, asked: bytes, source: Source, look: Callable[[], Pinned], note: Callable[[str], None]) -> Pinned:
    """What a source is pinned to; for a commit that was ``asked`` for before nobody is asked again.

    Out of reach, the last answer for the same question holds, and is said aloud.
    """
    held = recall(folder, asked, Pinned)
    if held and COMMIT.fullmatch(source.revision):
        return held
    try:
        pinned = look()
    except OutOfReachError as error:
        if held is None:
            raise
        why = error.what.splitlines()[0]
        note(f"{why}; {held.name}@{source.revision} is taken at {held.revision[:12]}, as last seen")
        return held
    record(folder, asked, pinned)
    return pinned


def make(folder: Path) -> None:
    """Make a folder that something is fetched into, where it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot be made: {error.strerror}", where=str(folder)) from error


def require_room(size: int, place: Path) -> None:
    """StoreError where so many bytes more do not go onto the disk at ``place``."""
    if short := copies.shortage(size, place):
        raise StoreError(short, where=str(place), hint=ROOM)


class Records(Struct, frozen=True):
    """The Answers port in one folder; one that cannot be written keeps nothing."""

    folder: Path

    def recall(self, question: str) -> str | None:
        return recall(self.folder, question.encode(), str)

    def record(self, question: str, answer: str) -> None:
        record(self.folder, question.encode(), answer)


def checkpoint(text: bytes, where: str) -> Checkpoint:
    """The text of config.json, or of an adapter's, as a Checkpoint; SourceError where it is no JSON object."""
    try:
        return Checkpoint(msgspec.json.decode(text, type=dict[str, object]))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        hint = "it has to be a JSON object in UTF-8; bring the file again"
        name = where.rpartition("/")[2]
        raise SourceError(f"{name} cannot be read: {error}", where=where, hint=hint) from None


def named(fact: FileFact, where: str) -> str:
    """A file's digest as the name of another that is kept for it; SourceError where it is none, and could lead elsewhere."""
    if not is_digest(fact.digest):
        raise SourceError(f"{fact.path} has no sound digest: {fact.digest!a}", where=where, hint="tell who keeps the listing")
    return fact.digest.replace(":", "-")
