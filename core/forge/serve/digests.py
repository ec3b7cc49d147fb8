"""Whether published files are what was built: their bytes held against the listing of the artifact that they came from.

A file whose size, times and inode are as they were when it was last found whole is not read again, unless that is asked for:
bytes that rot in place do not show in them, and are what the scrub (``forge.serve.scrub``) looks for.
"""

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from msgspec import Struct

from forge.errors import RepositoryError, StoreError
from forge.files import copies as copied, trees
from forge.files.trees import Entry
from forge.repository import config, publish
from forge.schema.manifest import Manifest, PublishedModel
from forge.schema.values import RuntimeKind
from forge.store.artifact import Artifact
from forge.store.checks import Rot, Seen
from forge.store.store import Store

Verify = Literal["always", "changed", "never"]
"""Read every file; those that are new or were written to since; or none."""
_GONE = {errno.ENOENT, errno.ENOTDIR}
_THREADS = 4
_AT_ONCE = 1024
_SHOWN = 3


class Due(Struct, frozen=True):
    """One published file, and what it was when it was built."""

    repository: Path
    model: str
    key: str
    """Of the artifact that the model was published from."""
    entry: Entry

    @property
    def place(self) -> Path:
        return self.repository / self.entry.path


class Found(Struct, frozen=True):
    """What a check of published files has found. Sizes are in bytes, ``oldest`` in seconds since 1970."""

    files: int = 0
    size: int = 0
    """Of the files that were read."""
    passed: int = 0
    passed_size: int = 0
    oldest: float = 0.0
    """Of those that were not: they are as they were when they were read, the first of them then."""
    rotten: tuple[Rot, ...] = ()
    unknown: tuple[str, ...] = ()
    """What could not be checked, and why."""

    def __add__(self, other: "Found") -> "Found":
        return Found(
            self.files + other.files,
            self.size + other.size,
            self.passed + other.passed,
            self.passed_size + other.passed_size,
            min((each.oldest for each in (self, other) if each.passed), default=0.0),
            self.rotten + other.rotten,
            self.unknown + other.unknown,
        )

    def told(self, now: float) -> tuple[str, ...]:
        """For a person: what was read, and what was skipped."""
        lines = [f"{_amount(self.files, self.size)} read: what was built"] if self.files and not self.rotten else []
        if self.passed:
            ago = _ago(now - self.oldest)
            lines.append(
                f"{_amount(self.passed, self.passed_size)} not read: unchanged since the last check, at most {ago} ago"
            )
        return (*lines, *self.unknown)


def check(repository: Path, held: Manifest, store: Store, verify: Verify, now: float, models: Iterable[str] = ()) -> Found:
    """Hold what ``repository`` shows of ``models``, by default all, to what was built, and note what came out.

    A model that was found rotten before, and whose entry the store has given up since, is rotten still.
    """
    wanted = {*models} or {model.name for model in held.models}
    before = store.checks.rotten(repository)
    if verify == "never":
        known = tuple(rot for rot in before if rot.model in wanted)
        skipped = f"{repository}: no file was checked, as was asked for"
        return Found(unknown=(skipped, *(f"found rotten before, and served all the same: {rot}" for rot in known)))
    due: list[Due] = []
    unknown: list[str] = []
    rotten = [rot for rot in before if rot.model not in wanted and held.find(rot.model)]
    kept = len(rotten)
    for model in (each for each in held.models if each.name in wanted):
        listed, why = files(repository, model, store)
        due += listed
        rotten += [rot for rot in before if why and rot.model == model.name and _is_still(rot)]
        unknown += [f"{model.name}: not checked: {why}"] if why else _edited(repository, model, store)
    result = _read(repository, due, store, verify, now)
    if (now_rotten := (*rotten, *result.rotten)) != before:
        store.checks.note(repository, now_rotten)
    return result + Found(rotten=tuple(rotten[kept:]), unknown=tuple(unknown))


def require(found: Found) -> None:
    """RepositoryError where a file is rotten."""
    if not found.rotten:
        return
    first = found.rotten[0]
    shown = "\n".join(f"    {rot}" for rot in found.rotten[:_SHOWN])
    more = f"\n    and {len(found.rotten) - _SHOWN} more" if len(found.rotten) > _SHOWN else ""
    hint = (
        f"`forge build` of the recipe of {first.model!r} makes it anew: what is rotten is noted, and goes from the store then. "
        "A file that you have changed yourself: `forge serve --verify never`"
    )
    raise RepositoryError(f"published files are not what was built\n{shown}{more}", where=first.repository, hint=hint)


def files(repository: Path, model: PublishedModel, store: Store) -> tuple[list[Due], str]:
    """Every file of ``model`` whose bytes are known, or why none is. Not its settings: a person may edit them."""
    entry = store.find(model.entry)
    if entry is None:
        return [], "what it was published from is not in this store"
    try:
        listed = entry.files()
    except StoreError as error:
        return [], error.what
    written = _settings(model)
    known = (each for each in listed if each.kind == "file" and each.path not in written)
    return [Due(repository, model.name, model.entry, each) for each in known if "__pycache__" not in each.path.split("/")], ""


def copies(model: PublishedModel, due: Iterable[Due], store: Store) -> bool:
    """Whether a published file of ``model`` has bytes of its own, apart from the store's."""
    entry = store.find(model.entry)
    return entry is not None and any(not _shared(each, entry) for each in due)


def judge(due: Due, now: float, digest: Callable[[Path, int], str] = copied.digest) -> Seen | Rot | str:
    """Read one file: how it was whole, what is wrong with it, or why it could not be read."""
    before: Seen | None = None
    try:
        before = looked(due)
        found = digest(due.place, before.size)
        after = looked(due)
    except OSError as error:
        if error.errno in _GONE:
            return _rot(due, "missing", now)
        if error.errno == errno.EIO:
            return _rot(due, f"cannot be read: {trees.reason(error, due.place)}", now, before)
        return f"{due.model}: not checked: {trees.reason(error, due.place)}"
    if not after.fits(before):
        return f"{due.model}: {due.entry.path}: not checked: it was written to meanwhile"
    if found != due.entry.blake3:
        same = f"its bytes changed (blake3 {due.entry.blake3[:16]}, now {found[:16]})"
        return _rot(due, same if after.size == due.entry.size else f"had {due.entry.size} bytes, has {after.size}", now, after)
    return Seen(after.size, after.mtime_ns, after.inode, after.ctime_ns, due.entry.blake3, now)


def looked(due: Due) -> Seen:
    """A file as it is now, without a look at its bytes. OSError."""
    status = due.place.stat()
    return Seen(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns, due.entry.blake3, 0.0)


# -- inside


def _read(repository: Path, due: Sequence[Due], store: Store, verify: Verify, now: float) -> Found:
    bad = {rot.file for rot in store.checks.rotten(repository)}
    seen = {path: one for path, one in store.checks.seen(repository).items() if path not in bad}
    passed = {} if verify == "always" else {each.entry.path: seen[each.entry.path] for each in due if _stands(each, seen)}
    reading = [each for each in due if each.entry.path not in passed]
    judged: list[Seen | Rot | str] = []
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        for first in range(0, len(reading), _AT_ONCE):  # what waits takes memory
            judged += threads.map(partial(judge, now=now), reading[first : first + _AT_ONCE])
    fresh = {each.entry.path: said for each, said in zip(reading, judged, strict=True) if isinstance(said, Seen)}
    mine = {each.entry.path for each in due}
    if reading:
        store.checks.keep(repository, {**{path: one for path, one in seen.items() if path not in mine}, **passed, **fresh})
    return Found(
        len(fresh),
        sum(one.size for one in fresh.values()),
        len(passed),
        sum(one.size for one in passed.values()),
        min((one.at for one in passed.values()), default=0.0),
        tuple(said for said in judged if isinstance(said, Rot)),
        tuple(said for said in judged if isinstance(said, str)),
    )


def _stands(due: Due, seen: Mapping[str, Seen]) -> bool:
    try:
        return due.entry.path in seen and seen[due.entry.path].fits(looked(due))
    except OSError:
        return False


def _rot(due: Due, why: str, now: float, seen: Seen | None = None) -> Rot | str:
    """Unless the model was published from something else while this was read."""
    model = publish.inventory(due.repository).find(due.model)
    if model is None or model.entry != due.key:
        return f"{due.model}: not checked: it was published anew meanwhile"
    return Rot(str(due.repository), due.model, due.entry.path, why, now, seen.moment if seen else ())


def _is_still(rot: Rot) -> bool:
    """Whether the file is as it was when it was found rotten: another forge may have laid it anew since."""
    try:
        status = (Path(rot.repository) / rot.file).stat()
    except OSError:
        return not rot.moment
    return rot.moment == (status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


def _shared(due: Due, entry: Artifact) -> bool:
    try:
        return os.path.samestat(due.place.stat(), (entry.path / due.entry.path).stat())
    except OSError:
        return False


def _settings(model: PublishedModel) -> frozenset[str]:
    """Files that people edit by hand: config.pbtxt, and the arguments of LLM() and of vLLM."""
    arguments = ("1/model.json", "1/multi_lora.json") if model.runtime is RuntimeKind.VLLM else ()
    return publish.configs(model) | {f"{folder}/{name}" for folder in model.roles.values() for name in arguments}


def _edited(repository: Path, model: PublishedModel, store: Store) -> list[str]:
    """The settings that are not as forge wrote them: a person may have edited them, so this is said and refuses nothing."""
    entry = store.find(model.entry)
    told: list[str] = []
    if entry is None:
        return told
    for path in sorted(_settings(model)):
        try:
            text, made = ((place / path).read_text(encoding="utf-8") for place in (repository, entry.path))
            same = text == made or text == config.relocate(made, str(repository))
        except (OSError, UnicodeDecodeError, RepositoryError):
            continue  # Triton says what is wrong with it
        told += [] if same else [f"{model.name}: {path} is not as forge wrote it; it is served as it is"]
    return told


def _amount(files: int, size: int) -> str:
    return f"{files} published file{'s' * (files != 1)} ({size / 1e6:,.1f} MB)"


def _ago(seconds: float) -> str:
    for unit, long in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * long:
            return f"{seconds / long:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"
