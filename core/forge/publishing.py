"""An entry's way into a model repository: staged there, then swapped in folder by folder under a journal.

``.forge/`` in the repository holds what is staged, and ``journal.json`` from the moment a publish can only be finished. Before
that moment a killed publish is undone by the next one, from then on it is finished by it. It is gone when the publish is done:
Triton's default control mode takes every folder for a model, also one whose name begins with a dot. So the lock is a file.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct
from msgspec.structs import replace

from forge import manifest, trees
from forge.errors import RepositoryError
from forge.manifest import Manifest, PublishedModel
from forge.model import ASSETS
from forge.places import Places
from forge.trees import Laid

Relocate = Callable[[str], str]
"""A config.pbtxt of an entry -> the same with the paths that it has in its repository."""
Coming = tuple[Path, PublishedModel]
"""An entry and the model that it is published as."""

_CONFIG = "config.pbtxt"
_PRIVATE = ".forge"
_JOURNAL = ".forge/journal.json"
_LOCK = ".forge.lock"
_ORIGINALS = ".configs"
"""Folder among a model's assets with its config.pbtxt files as they are before they name a place, for when that changes."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV}
_PATIENCE = 0.3


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish did, in bytes that now share the store's blocks and bytes that had to be copied."""

    linked: int = 0
    copied: int = 0
    changed: bool = True


class _Swap(Struct, frozen=True):
    """A staged folder that belongs at ``place``; ``inode`` tells it from its predecessor after they changed places."""

    place: str
    inode: int


class _Journal(Struct, frozen=True):
    """A publish that has begun to be seen: all that finishing it takes."""

    staging: str
    swaps: tuple[_Swap, ...]
    leave: tuple[str, ...]
    manifest: str


def _silent(_: str) -> None:
    """Nobody listens."""


def publish(
    entry: Path,
    repository: Path,
    model: PublishedModel,
    relocate: Relocate,
    *,
    waiting: Callable[[str], None] = _silent,
) -> Published:
    """Make ``repository`` show ``entry`` (role folders and ``_assets/<name>``) as ``model``; others are not touched.

    RepositoryError where another model, or a folder that forge did not put there, is in the way.
    """
    return publish_all(((entry, model),), repository, relocate, waiting=waiting)[0]


def publish_all(
    wanted: Sequence[Coming],
    repository: Path,
    relocate: Relocate,
    *,
    waiting: Callable[[str], None] = _silent,
) -> tuple[Published, ...]:
    """The same for several, each with its entry: all of them come to be seen in one publish, or none does."""
    repository = Path(os.path.abspath(repository))
    with _explained(repository), _locked(repository, waiting):
        _recover(repository)
        held = _at_home(repository, relocate)
        places, done, coming, resampled = Places(repository, held), dict[str, Published](), list[Coming](), held
        for entry, model in wanted:
            places.admit(model)
            _check_entry(entry, model)
            former = held.find(model.name)
            if not (former and _stands(entry, repository, _asked_as(former, model), model, relocate)):
                coming.append((entry, model))
                continue
            done[model.name] = Published(changed=False)
            if former != replace(model, linked=former.linked):
                resampled = resampled.having(replace(model, linked=former.linked))
        if coming:
            done |= _swap_in(coming, repository, resampled, relocate)
        elif resampled is not held:
            _write(repository, manifest.NAME, manifest.write(resampled))
        return tuple(done[model.name] for _, model in wanted)


def withdraw(repository: Path, name: str) -> None:
    """Take a model out of a repository; RepositoryError if forge has put none of that name there."""
    repository = Path(os.path.abspath(repository))
    if not repository.is_dir():
        raise RepositoryError(f"there is no model {name!r}: there is no such repository", where=str(repository))
    with _explained(repository), _locked(repository, _silent):
        _recover(repository)
        held = inventory(repository).named
        model = held.find(name)
        if model is None:
            names = ", ".join(one.name for one in held.models) or "nothing"
            raise RepositoryError(f"there is no model {name!r}", where=str(repository), hint=f"It holds: {names}.")
        staging = _staging(repository)
        _commit(repository, _Journal(staging.name, (), model.folders, manifest.write(held.without(name))))


def settle(repository: Path, relocate: Relocate) -> bool:
    """Write every config.pbtxt anew for where the repository stands now; says whether it had moved."""
    repository = Path(os.path.abspath(repository))
    with _explained(repository):
        # A repository that may only be read can be served all the same.
        if inventory(repository).root == str(repository) and not (repository / _JOURNAL).exists():
            return False
    with _explained(repository), _locked(repository, _silent):
        _recover(repository)
        before = inventory(repository).root
        return _at_home(repository, relocate).root != before


def inventory(repository: Path) -> Manifest:
    """What forge has put into ``repository``: an empty manifest if nothing yet."""
    file = repository / manifest.NAME
    try:
        return manifest.read(file.read_bytes(), str(file))
    except FileNotFoundError:
        return Manifest(root=os.path.abspath(repository))


def original(repository: Path, held: Manifest, config: str) -> Path | None:
    """The text that ``config`` (a path in the repository) is written from when the repository moves, where one is kept."""
    model = next((model for model in held.models if config in _configs(model)), None)
    kept = _original(repository, model, config) if model else None
    return kept if kept and kept.is_file() else None


# -- before anything is touched


def _check_entry(entry: Path, model: PublishedModel) -> None:
    """Whether the entry holds the model's folders and nothing else."""
    top = {item.name for item in entry.iterdir()} - {ASSETS}
    assets = entry / ASSETS
    there = top | ({f"{ASSETS}/{item.name}" for item in assets.iterdir()} if assets.is_dir() else set[str]())
    if wrong := sorted(there ^ (set(model.folders) & (there | set(model.roles.values())))):
        raise RepositoryError(
            f"the entry and the model {model.name!r} disagree about {', '.join(wrong)}",
            where=str(entry),
            hint="This is a mistake in forge: please report it.",
        )


def _asked_as(former: PublishedModel, model: PublishedModel) -> PublishedModel:
    """``former`` with what the manifest alone says of ``model``: how it is asked unless told otherwise, and how much of it."""
    return replace(former, sampling=model.sampling, limits=model.limits)


def _stands(entry: Path, repository: Path, former: PublishedModel, model: PublishedModel, relocate: Relocate) -> bool:
    """Whether the repository shows exactly this, down to the inodes: a link to a file since replaced is stale."""
    if former != replace(model, linked=former.linked):
        return False
    for item in trees.walk(entry):
        place = repository / item.relative
        try:
            status = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if item.relative in _configs(model):
            if place.read_text(encoding="utf-8") != relocate(item.path.read_text(encoding="utf-8")):
                return False
        elif item.is_file:
            same = os.path.samestat(status, item.status) if former.linked else status.st_size == item.status.st_size
            if not same:
                return False
    return True


# -- the publish itself


def _swap_in(coming: Sequence[Coming], repository: Path, held: Manifest, relocate: Relocate) -> dict[str, Published]:
    staging = _staging(repository)
    models: list[PublishedModel] = []
    done: dict[str, Published] = {}
    try:
        for entry, model in coming:
            laid = _stage(entry, staging, model, relocate)
            models.append(replace(model, linked=not laid.copied))
            done[model.name] = Published(laid.linked, laid.copied)
        trees.flush(staging)
    except BaseException:
        trees.remove(staging)
        raise
    places = [folder for model in models for folder in model.folders if (staging / folder).is_dir()]
    formers = [former for model in models if (former := held.find(model.name))]
    names, staying = {model.name for model in models}, frozenset(places)
    merged = sorted((*(one for one in held.models if one.name not in names), *models), key=lambda one: one.name)
    journal = _Journal(
        staging=staging.name,
        swaps=tuple(_Swap(place, (staging / place).stat().st_ino) for place in places),
        leave=tuple(folder for former in formers for folder in former.folders if folder not in staying),
        manifest=manifest.write(replace(held, models=tuple(merged), root=str(repository))),
    )
    _commit(repository, journal)
    return done


def _stage(entry: Path, staging: Path, model: PublishedModel, relocate: Relocate) -> Laid:
    configs = _configs(model)
    laid = trees.lay(entry, staging, leave=configs)
    for config in sorted(configs):
        text = (entry / config).read_text(encoding="utf-8")
        placed = relocate(text)
        (staging / config).write_text(placed, encoding="utf-8")
        if placed != text:
            kept = _original(staging, model, config)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(text, encoding="utf-8")
    return laid


def _commit(repository: Path, journal: _Journal) -> None:
    """From here on the publish is finished, by this process or the next."""
    _write(repository, _JOURNAL, msgspec.json.encode(journal).decode())
    _finish(repository, journal)


def _finish(repository: Path, journal: _Journal) -> None:
    """Do what the journal says; what is done already is not done again."""
    staging = repository / _PRIVATE / journal.staging
    for swap in journal.swaps:
        place = repository / swap.place
        if not (place.is_dir() and place.stat().st_ino == swap.inode):
            place.parent.mkdir(exist_ok=True)
            _exchange(staging / swap.place, place)
    for folder in journal.leave:
        if os.path.lexists(repository / folder):
            (repository / folder).rename(staging / uuid4().hex)
    with suppress(OSError):  # others' assets stand there; an empty folder keeps Triton's default control mode from starting
        (repository / ASSETS).rmdir()
    trees.flush_one(repository)
    _write(repository, manifest.NAME, journal.manifest)
    (repository / _JOURNAL).unlink(missing_ok=True)


def _exchange(staged: Path, place: Path) -> None:
    """Put ``staged`` at ``place`` and what was there where ``staged`` was, at once where the kernel can."""
    if not os.path.lexists(place):
        staged.rename(place)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    failure = errno.ENOSYS
    if hasattr(libc, "renameat2"):
        names = os.fsencode(staged), os.fsencode(place)
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
        failure = ctypes.get_errno()
    if failure not in _NO_EXCHANGE:
        raise OSError(failure, os.strerror(failure), str(place))
    place.rename(staged.with_name(uuid4().hex))
    staged.rename(place)


def _recover(repository: Path) -> None:
    """Finish or undo what a killed publish left."""
    file = repository / _JOURNAL
    try:
        journal = msgspec.json.decode(file.read_bytes(), type=_Journal)
    except FileNotFoundError:
        _clear(repository)
        return
    except msgspec.DecodeError as error:
        raise RepositoryError(
            f"the journal of an unfinished publish cannot be read: {error}",
            where=str(file),
            hint="Move this repository away and build it again; what is in the store is not made twice.",
        ) from error
    _finish(repository, journal)


def _clear(repository: Path) -> None:
    """Remove what is staged and what was swapped out. What cannot be removed waits for the next publish."""
    private = repository / _PRIVATE
    for item in private.iterdir() if private.is_dir() else ():
        with suppress(PermissionError):
            trees.remove(item)


def _write(repository: Path, path: str, text: str) -> None:
    """Whole or not at all; what a killed writer leaves lies in the private folder."""
    private = repository / _PRIVATE
    private.mkdir(exist_ok=True)
    trees.write_whole(repository / path, text, aside=private)


def _at_home(repository: Path, relocate: Relocate) -> Manifest:
    """The manifest, after the config.pbtxt files have been made to name the place where the repository stands."""
    held = inventory(repository).named
    if held.root == str(repository):
        return held
    for model in held.models:
        for config in _configs(model):
            kept = _original(repository, model, config)
            if kept.is_file():
                _write(repository, config, relocate(kept.read_text(encoding="utf-8")))
    held = replace(held, root=str(repository))
    _write(repository, manifest.NAME, manifest.write(held))
    return held


def _original(repository: Path, model: PublishedModel, config: str) -> Path:
    return repository / model.assets / _ORIGINALS / f"{Path(config).parent.name}.pbtxt"


def _configs(model: PublishedModel) -> frozenset[str]:
    return frozenset(f"{folder}/{_CONFIG}" for folder in model.roles.values())


def _staging(repository: Path) -> Path:
    staging = repository / _PRIVATE / f"staged-{uuid4().hex}"
    staging.mkdir(parents=True)
    return staging


@contextmanager
def _locked(repository: Path, waiting: Callable[[str], None]) -> Generator[None]:
    """One publish at a time in a repository."""
    repository.mkdir(parents=True, exist_ok=True)
    lock = FileLock(repository / _LOCK)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        waiting(f"{repository}: another process is publishing here; waiting for it")
        lock.acquire(poll_interval=0.1)
    try:
        yield
        _clear(repository)
    finally:
        with suppress(OSError):  # it holds what the next publish finishes
            (repository / _PRIVATE).rmdir()
        lock.release()


@contextmanager
def _explained(repository: Path) -> Generator[None]:
    """The disk's refusals as RepositoryError."""
    try:
        yield
    except OSError as error:
        raise RepositoryError(
            f"the model repository could not be written: {trees.reason(error, repository)}",
            where=str(repository),
            hint="Make room or mend the permissions and run the build again, or use another --repository.",
        ) from error
