"""An entry's way into a model repository: staged there, then swapped in folder by folder under a journal.

``.forge/`` in the repository holds the lock, what is staged, and ``journal.json`` from the moment a publish can only be
finished. Before that moment a killed publish is undone by the next one, from then on it is finished by it.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Generator
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
from forge.trees import Laid

Relocate = Callable[[str], str]
"""A config.pbtxt of an entry -> the same with the paths that it has in its repository."""

_CONFIG = "config.pbtxt"
_PRIVATE = ".forge"
_JOURNAL = ".forge/journal.json"
_LOCK = "lock"
_ORIGINALS = ".configs"
"""Folder among a model's assets with its config.pbtxt files as the entry had them, for when the repository moves."""
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
    repository = Path(os.path.abspath(repository))
    with _explained(repository), _locked(repository, waiting):
        _recover(repository)
        held = _at_home(repository, relocate)
        former = held.find(model.name)
        check_room(repository, held, model)
        _check_entry(entry, model)
        if former and _stands(entry, repository, replace(former, sampling=model.sampling), model, relocate):
            if former.sampling != model.sampling:
                model = replace(model, linked=former.linked)
                _write(repository, manifest.NAME, manifest.write(held.having(model)))
            return Published(changed=False)
        return _swap_in(entry, repository, held, model, relocate)


def withdraw(repository: Path, name: str) -> None:
    """Take a model out of a repository; RepositoryError if forge has put none of that name there."""
    repository = Path(os.path.abspath(repository))
    with _explained(repository), _locked(repository, _silent):
        _recover(repository)
        held = inventory(repository)
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


# -- before anything is touched


def check_room(repository: Path, held: Manifest, model: PublishedModel) -> None:
    """Whether ``model`` can stand in this repository beside what is there."""
    others = held.without(model.name).models
    for other in others:
        if not (other.prefix and model.prefix):
            plain, beside = (other, model) if not other.prefix else (model, other)
            raise RepositoryError(
                f"{plain.name!r} has plain folder names (ensemble, ...), so {beside.name!r} cannot stand beside it",
                where=str(repository),
                hint="Build both together, each under its prefix: `forge build A B`; or use another --repository.",
            )
    ours = {folder for one in held.models if one.name == model.name for folder in one.folders}
    theirs = {folder: other.name for other in others for folder in other.folders}
    for folder in model.folders:
        if folder in theirs:
            raise RepositoryError(
                f"the folder {folder!r} belongs to the model {theirs[folder]!r}",
                where=str(repository),
                hint="Give one of the two recipes another name, or use another --repository.",
            )
        if folder not in ours and os.path.lexists(repository / folder):
            raise RepositoryError(
                f"the folder {folder!r} is in the way, and forge did not put it there",
                where=str(repository / folder),
                hint="Move it away, or use another --repository; forge overwrites only what its manifest lists.",
            )


def _check_entry(entry: Path, model: PublishedModel) -> None:
    """Whether the entry holds the model's folders and nothing else."""
    top = {item.name for item in entry.iterdir()} - {manifest.ASSETS}
    assets = entry / manifest.ASSETS
    there = top | ({f"{manifest.ASSETS}/{item.name}" for item in assets.iterdir()} if assets.is_dir() else set[str]())
    if wrong := sorted(there ^ (set(model.folders) & (there | set(model.roles.values())))):
        raise RepositoryError(
            f"the entry and the model {model.name!r} disagree about {', '.join(wrong)}",
            where=str(entry),
            hint="This is a mistake in forge: please report it.",
        )


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


def _swap_in(entry: Path, repository: Path, held: Manifest, model: PublishedModel, relocate: Relocate) -> Published:
    staging = _staging(repository)
    try:
        laid = _stage(entry, staging, model, relocate)
        trees.flush(staging)
    except BaseException:
        trees.remove(staging)
        raise
    places = [folder for folder in model.folders if (staging / folder).is_dir()]
    former = held.find(model.name)
    model = replace(model, linked=not laid.copied)
    journal = _Journal(
        staging=staging.name,
        swaps=tuple(_Swap(place, (staging / place).stat().st_ino) for place in places),
        leave=tuple(folder for folder in (former.folders if former else ()) if folder not in places),
        manifest=manifest.write(replace(held.having(model), root=str(repository))),
    )
    _commit(repository, journal)
    return Published(laid.linked, laid.copied)


def _stage(entry: Path, staging: Path, model: PublishedModel, relocate: Relocate) -> Laid:
    configs = _configs(model)
    laid = trees.lay(entry, staging, leave=configs)
    for config in sorted(configs):
        text = (entry / config).read_text(encoding="utf-8")
        placed = relocate(text)
        (staging / config).write_text(placed, encoding="utf-8")
        if placed != text:
            original = staging / model.assets / _ORIGINALS / f"{Path(config).parent.name}.pbtxt"
            original.parent.mkdir(parents=True, exist_ok=True)
            original.write_text(text, encoding="utf-8")
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
    trees.flush_one(repository)
    _write(repository, manifest.NAME, journal.manifest)
    (repository / _JOURNAL).unlink(missing_ok=True)
    _clear(repository)


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
    for item in (repository / _PRIVATE).iterdir():
        if item.name != _LOCK:
            with suppress(PermissionError):
                trees.remove(item)


def _write(repository: Path, path: str, text: str) -> None:
    trees.write_whole(repository / path, text, aside=repository / _PRIVATE)


def _at_home(repository: Path, relocate: Relocate) -> Manifest:
    """The manifest, after the config.pbtxt files have been made to name the place where the repository stands."""
    held = inventory(repository)
    if held.root == str(repository):
        return held
    for model in held.models:
        for config in _configs(model):
            original = repository / model.assets / _ORIGINALS / f"{Path(config).parent.name}.pbtxt"
            if original.is_file():
                _write(repository, config, relocate(original.read_text(encoding="utf-8")))
    held = replace(held, root=str(repository))
    _write(repository, manifest.NAME, manifest.write(held))
    return held


def _configs(model: PublishedModel) -> frozenset[str]:
    return frozenset(f"{folder}/{_CONFIG}" for folder in model.roles.values())


def _staging(repository: Path) -> Path:
    staging = repository / _PRIVATE / f"staged-{uuid4().hex}"
    staging.mkdir(parents=True)
    return staging


@contextmanager
def _locked(repository: Path, waiting: Callable[[str], None]) -> Generator[None]:
    """One publish at a time in a repository."""
    (repository / _PRIVATE).mkdir(parents=True, exist_ok=True)
    lock = FileLock(repository / _PRIVATE / _LOCK)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        waiting(f"{repository}: another process is publishing here; waiting for it")
        lock.acquire(poll_interval=0.1)
    try:
        yield
    finally:
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
