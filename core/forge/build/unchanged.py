"""What a build left standing, noted with all that it depended on, so that the same build again can see at once that it is done.

A note holds no opinion: it names every text that was read, every file of code that planned, what was installed, the artifacts
and the published files. While each of them is as it was, planning again would end in the same keys; where one is not, the
note says nothing and the whole way is gone. This room imports next to nothing: that is what it is for.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from blake3 import blake3
from msgspec import Struct

FORMAT = 1
KEPT = 500
"""Notes at most; the oldest go first."""
_DISTRIBUTIONS = (".dist-info", ".egg-info", ".egg-link", ".pth")
_MANIFEST = "manifest.json"
_MINE = (".forge",)
_NOTHING = (0, 0, 0)

Seen = tuple[int, int, int]
"""(bytes, modified in ns, inode) of a file or a folder; zeros where there is none."""


class Question(Struct, frozen=True):
    """What was asked for: the files that were named, the repository if one was, and the options as words; and from where."""

    files: tuple[str, ...]
    repository: str
    options: tuple[str, ...]
    folder: str


class Held(Struct, frozen=True):
    """One step's artifact: its folder, its size in bytes, and the digest of its manifest."""

    name: str
    folder: str
    size: int
    manifest: str


class Model(Struct, frozen=True):
    """One published model, as a build tells of it."""

    name: str
    roles: dict[str, str]
    entry: str


class DoneBuild(Struct, frozen=True):
    """A build that is done already."""

    repository: str
    models: tuple[Model, ...]
    steps: tuple[Held, ...]
    linked: int = 0
    copied: int = 0
    findings: tuple[str, ...] = ()
    """Always empty: a build that left something wrong is not noted."""


class Inputs(Struct, frozen=True):
    """All that a plan is made from: texts by digest (empty for one that is not there), code, and what is installed."""

    texts: dict[str, str]
    code: dict[str, Seen]
    distributions: str


class _Note(Struct, frozen=True):
    done: DoneBuild
    inputs: Inputs
    published: dict[str, Seen]


class Notes:
    """The notes of one home."""

    def __init__(self, home: Path) -> None:
        self._notes = home / "unchanged"
        self._servers = home / "servers"
        self._rotten = home / "store" / "rotten"

    def find(self, question: Question) -> DoneBuild | None:
        """The build that ``question`` asks for, if it is done and all of it is as it was. Its artifacts count as just used."""
        try:
            note = msgspec.json.decode(self._place(question).read_bytes(), type=_Note)
        except (OSError, msgspec.DecodeError):
            return None
        inputs = note.inputs
        same = (
            all(_digest(path) == digest for path, digest in inputs.texts.items())
            and all(_look(path) == seen for path, seen in (*inputs.code.items(), *note.published.items()))
            and all(_digest(f"{step.folder}/{_MANIFEST}") == step.manifest for step in note.done.steps)
            and inputs.distributions == _distributions()
            and not self._is_serving()
            and not self._is_rotten(note.done.repository)
        )
        if not same:
            return None
        for step in note.done.steps:
            with suppress(OSError):  # another's store, or a read-only one: it only ages faster
                os.utime(f"{step.folder}/{_MANIFEST}")
        return note.done

    def keep(self, question: Question, inputs: Inputs, done: DoneBuild) -> None:
        """Note a build that is done, and what was looked at before it was planned. A disk that refuses costs the note only."""
        held = tuple(msgspec.structs.replace(step, manifest=_digest(f"{step.folder}/{_MANIFEST}")) for step in done.steps)
        published = {path: _look(path) for path in _below(done.repository)}
        note = _Note(msgspec.structs.replace(done, steps=held), inputs, published)
        place = self._place(question)
        with suppress(OSError):
            self._notes.mkdir(parents=True, exist_ok=True)
            fresh = place.with_suffix(f".{os.getpid()}")
            fresh.write_bytes(msgspec.json.encode(note))
            fresh.replace(place)
            for old in sorted(self._notes.iterdir(), key=lambda each: each.stat().st_mtime)[:-KEPT]:
                old.unlink(missing_ok=True)

    def _is_serving(self) -> bool:
        """Whether a server may be running: a build then looks whether it has all models."""
        return any(name.endswith(".json") for name in (os.listdir(self._servers) if self._servers.is_dir() else ()))

    def _is_rotten(self, repository: str) -> bool:
        """Whether a published file there was found to be other than it was built (``forge.store.checks``)."""
        return os.path.exists(self._rotten / f"{blake3(repository.encode()).hexdigest()[:32]}.json")

    def _place(self, question: Question) -> Path:
        words = (FORMAT, sys.version, sys.executable, sys.path, os.uname().machine, question)
        return self._notes / f"{blake3(msgspec.json.encode(words)).hexdigest()[:32]}.json"


def question(
    files: Iterable[str | Path], repository: str | Path | None, folder: str, options: Mapping[str, object]
) -> Question:
    """The same words for the same wish, whoever asks; ``folder`` is what relative paths stand on."""
    named = tuple(os.path.normpath(os.path.join(folder, file)) for file in files)
    place = os.path.normpath(os.path.join(folder, repository)) if repository else ""
    return Question(named, place, tuple(f"{name}={value}" for name, value in sorted(options.items())), folder)


def look(texts: Iterable[Path], code: Iterable[Path]) -> Inputs:
    """What a plan is about to be made from: the files of a person, and files and folders of code."""
    seen = {path: _look(path) for place in code for path in _below(str(place))}
    return Inputs({str(path): _digest(str(path)) for path in texts}, seen, _distributions())


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return blake3(file.read()).hexdigest()
    except OSError:
        return ""


def _look(path: str) -> Seen:
    try:
        status = os.stat(path)
    except OSError:
        return _NOTHING
    return status.st_size, status.st_mtime_ns, status.st_ino


def _below(place: str) -> Iterator[str]:
    """A file, or a folder with all below it; byte code and what a publish keeps for itself are nobody's words."""
    yield place
    for folder, inner, files in os.walk(place):
        inner[:] = [name for name in inner if name != "__pycache__" and name not in _MINE]
        yield from (f"{folder}/{name}" for name in (*inner, *files))


def _distributions() -> str:
    """What is installed, as far as names and times of installation tell."""
    found: list[tuple[str, str, int]] = []
    for place in sys.path:
        with suppress(OSError), os.scandir(place or ".") as entries:
            found += [(place, each.name, each.stat().st_mtime_ns) for each in entries if each.name.endswith(_DISTRIBUTIONS)]
    return blake3(msgspec.json.encode(sorted(found))).hexdigest()
