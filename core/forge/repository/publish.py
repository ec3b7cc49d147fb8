"""An entry's way into a model repository: staged there, then swapped in folder by folder under a journal."""

import errno
import os
import tempfile
from collections.abc import Callable, Container, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3
from filelock import FileLock, Timeout
from msgspec import Struct
from msgspec.structs import replace

from forge.errors import RepositoryError, meant
from forge.files import locks, texts, trees
from forge.files.trees import Laid
from forge.repository import journal
from forge.repository.folders import Places
from forge.repository.journal import COMING, StuckError, Swap
from forge.schema import manifest
from forge.schema.manifest import Manifest, PublishedModel
from forge.schema.values import ASSETS, RuntimeKind

Relocate = Callable[[str], str]
"""A config.pbtxt or model.yaml of an entry -> the same with the paths that it has in its repository."""
Coming = tuple[Path, PublishedModel]
"""An entry and the model that it is published as."""

_CONFIG = "config.pbtxt"
_YAML = "1/model.yaml"
_LOCK = ".forge.lock"
_ORIGINALS = ".configs"
"""Folder among a model's assets with its configs as they are before they name a place, for when that changes."""


class Published(Struct, frozen=True):
    """What a publish did, in bytes that now share the store's blocks and bytes that had to be copied."""

    linked: int = 0
    copied: int = 0
    changed: bool = True


def publish(entry: Path, repository: Path, model: PublishedModel, relocate: Relocate) -> Published:
    """Make ``repository`` show ``entry`` (role folders and ``_assets/<name>``) as ``model``; others are not touched.

    RepositoryError where another model, or a folder that forge did not put there, is in the way.
    """
    return publish_all(((entry, model),), repository, relocate)[0]


def publish_all(
    wanted: Sequence[Coming], repository: Path, relocate: Relocate, *, anew: Container[str] = ()
) -> tuple[Published, ...]:
    """The same for several, each with its entry: all of them come to be seen in one publish, or none does.

    Models named in ``anew`` are laid again even where they seem to stand: their bytes are known to be others.
    """
    repository = Path(os.path.abspath(repository))
    with _explained(repository), _locked(repository):
        held = _at_home(repository, relocate)
        places, done, coming, resampled = Places(repository, held), dict[str, Published](), list[Coming](), held
        for entry, model in wanted:
            places.admit(model)
            _check_entry(entry, model)
            former = held.find(model.name)
            if model.name in anew or not (former and _stands(entry, repository, _asked_as(former, model), model, relocate)):
                coming.append((entry, model))
                continue
            done[model.name] = Published(changed=False)
            if former != replace(model, linked=former.linked):
                resampled = resampled.having(replace(model, linked=former.linked))
        if coming:
            done |= _swap_in(coming, repository, resampled, relocate)
        elif resampled is not held:
            journal.commit(repository, journal.staging(repository), (), (), manifest.write(resampled))
        return tuple(done[model.name] for _, model in wanted)


def holding(name: str, names: Sequence[str]) -> str:
    """What there is in the place of a name that is not: the nearest, and all."""
    return f"{meant(name, names)} It holds: {', '.join(names) or 'nothing'}.".strip()


def withdraw(repository: Path, name: str) -> None:
    """Take a model out of a repository; RepositoryError if forge has put none of that name there."""
    repository = Path(os.path.abspath(repository))
    if not repository.is_dir():
        raise RepositoryError(f"there is no model {name!r}: there is no such repository", where=str(repository))
    with _explained(repository), _locked(repository):
        held = _held(repository).named
        model = held.find(name)
        if model is None:
            hint = holding(name, [one.name for one in held.models])
            raise RepositoryError(f"there is no model {name!r}", where=str(repository), hint=hint)
        text = manifest.write(held.without(name))
        journal.commit(repository, journal.staging(repository), (), model.folders, text)


def settle(repository: Path, relocate: Relocate) -> bool:
    """Write every config.pbtxt anew for where the repository stands now; says whether it had moved."""
    repository = Path(os.path.abspath(repository))
    # A repository that may only be read can be served all the same.
    if inventory(repository).root == str(repository) and not journal.pending(repository):
        return False
    with _explained(repository), _locked(repository):
        before = _held(repository).root
        return _at_home(repository, relocate).root != before


def inventory(repository: Path) -> Manifest:
    """What forge has put into ``repository``: an empty manifest if nothing yet."""
    return found(repository) or Manifest(root=os.path.abspath(repository))


def found(repository: Path) -> Manifest | None:
    """The same; None where no forge has published. What a killed publish left there is finished or undone before.

    Where that may not be written, this is what the repository will hold when it is. RepositoryError where it cannot be read.
    """
    repository = Path(os.path.abspath(repository))
    try:
        text = _settled(repository)
    except OSError as error:
        what = f"the model repository cannot be read: {trees.reason(error, repository)}"
        hint = "Name a folder, or fix its permissions."
        raise RepositoryError(what, where=str(repository), hint=hint) from error
    return None if text is None else manifest.read(text, str(repository / manifest.NAME))


@contextmanager
def quiet(repository: Path) -> Generator[Manifest]:
    """What the repository holds while nobody publishes there. RepositoryError where that may not be written."""
    repository = Path(os.path.abspath(repository))
    with _explained(repository), _locked(repository):
        yield _held(repository)


def original(repository: Path, held: Manifest, config: str) -> Path | None:
    """The text that ``config`` (a path in the repository) is written from when the repository moves, where one is kept."""
    model = next((model for model in held.models if config in configs(model)), None)
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
    """``former`` with what the manifest alone says of ``model``: its recipe, how it is asked unless told otherwise."""
    return replace(former, sampling=model.sampling, limits=model.limits, recipe=model.recipe)


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
        if item.relative in configs(model):
            if texts.there(place, RepositoryError, "a config of forge") != relocate(item.path.read_text(encoding="utf-8")):
                return False
        elif item.is_file:
            same = os.path.samestat(status, item.status) if former.linked else status.st_size == item.status.st_size
            if not same:
                return False
    return True


# -- the publish itself


def _swap_in(coming: Sequence[Coming], repository: Path, held: Manifest, relocate: Relocate) -> dict[str, Published]:
    staged = journal.staging(repository)
    models: list[PublishedModel] = []
    done: dict[str, Published] = {}
    for entry, model in coming:
        laid = _stage(entry, staged / COMING, model, relocate)
        models.append(replace(model, linked=not laid.copied))
        done[model.name] = Published(laid.linked, laid.copied)
    places = [folder for model in models for folder in model.folders if (staged / COMING / folder).is_dir()]
    formers = [former for model in models if (former := held.find(model.name))]
    names, staying = {model.name for model in models}, frozenset(places)
    merged = sorted((*(one for one in held.models if one.name not in names), *models), key=lambda one: one.name)
    forges = {folder for one in held.models for folder in one.folders}
    journal.commit(
        repository,
        staged,
        [Swap(place, place in forges or journal.is_marked(repository / place)) for place in places],
        [folder for former in formers for folder in former.folders if folder not in staying],
        manifest.write(replace(held, models=tuple(merged), root=str(repository))),
    )
    return done


def _stage(entry: Path, staging: Path, model: PublishedModel, relocate: Relocate) -> Laid:
    written = configs(model)
    laid = trees.lay(entry, staging, leave=written)
    for config in sorted(written):
        text = (entry / config).read_text(encoding="utf-8")
        placed = relocate(text)
        (staging / config).write_text(placed, encoding="utf-8")
        (staging / config).chmod(0o644)  # whoever serves it reads it, whatever this process's umask is
        if placed != text:
            kept = _original(staging, model, config)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(text, encoding="utf-8")
    return laid


def _at_home(repository: Path, relocate: Relocate) -> Manifest:
    """The manifest, after its configs have been made to name the place where the repository stands."""
    held = _held(repository).named
    if held.root == str(repository):
        return held
    staged = journal.staging(repository)
    swaps: list[Swap] = []
    for config in sorted(config for model in held.models for config in configs(model)):
        kept, place = original(repository, held, config), repository / config
        text = relocate(kept.read_text(encoding="utf-8")) if kept else ""
        if kept and place.parent.is_dir() and texts.there(place, RepositoryError, "a config of forge") != text:
            coming = staged / COMING / config
            coming.parent.mkdir(parents=True, exist_ok=True)
            coming.write_text(text, encoding="utf-8")
            swaps.append(Swap(config, former=True, digest=blake3(text.encode()).hexdigest()))
    held = replace(held, root=str(repository))
    journal.commit(repository, staged, swaps, (), manifest.write(held))
    return held


def _original(repository: Path, model: PublishedModel, config: str) -> Path:
    return repository / model.assets / _ORIGINALS / f"{Path(config).parts[0]}{Path(config).suffix}"


def configs(model: PublishedModel) -> frozenset[str]:
    """Files that name the repository's place: of llmapi LLM()'s arguments, too."""
    names = (_CONFIG, _YAML) if model.runtime is RuntimeKind.LLMAPI else (_CONFIG,)
    return frozenset(f"{folder}/{name}" for folder in model.roles.values() for name in names)


# -- one at a time, and after what was killed


def _held(repository: Path) -> Manifest:
    """What stands there, to whoever has the lock."""
    text = journal.text(repository)
    return Manifest(root=str(repository)) if text is None else manifest.read(text, str(repository / manifest.NAME))


@contextmanager
def _locked(repository: Path) -> Generator[None]:
    """One publish at a time in a repository, and none that was killed before: it is finished or undone first."""
    _make(repository)
    locks.require(repository)
    with _lock(repository):
        try:
            journal.recover(repository)
            yield
        finally:
            journal.clear(repository)


def _settled(repository: Path) -> bytes | None:
    """The manifest's text. Who may not write is told what it will be once somebody may; who comes while another publishes, what
    it is until then."""
    if not journal.is_left(repository):
        return journal.text(repository)
    try:
        lock = _lock(repository)
        lock.acquire(timeout=0)
    except Timeout:
        return journal.text(repository)
    except OSError:
        return journal.foreseen(repository)
    try:
        journal.recover(repository)
        return journal.text(repository)
    except (OSError, StuckError):
        return journal.foreseen(repository)
    finally:
        journal.clear(repository)
        lock.release()


def _lock(repository: Path) -> FileLock:
    """OSError where its file is a link: it would be written where that leads."""
    file = repository / _LOCK
    if file.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(file))
    return FileLock(file)


def require_folder(repository: Path) -> Path:
    """The nearest folder to a repository, or itself, that is there; RepositoryError where none can be made in its place."""
    nearest = next((folder for folder in (repository, *repository.parents) if os.path.lexists(folder)), repository)
    if wrong := texts.no_folder(nearest):
        hint = "name a folder for the repository (--repository, or the deployment's), or a place where none is yet"
        raise RepositoryError(wrong, where=str(nearest), hint=hint)
    return nearest


def require_writable(repository: Path) -> None:
    """RepositoryError where nothing can be published, for whoever builds for hours first. It leaves nothing there."""
    nearest = require_folder(repository)
    with _explained(repository), tempfile.TemporaryFile(dir=nearest):
        pass


def _make(repository: Path) -> None:
    """The repository's folder, and the names on the way to it on disk."""
    missing = [folder for folder in (repository, *repository.parents) if not folder.exists()]
    repository.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        with suppress(PermissionError):  # one that may be written and not be read
            trees.flush_one(folder.parent)


@contextmanager
def _explained(repository: Path) -> Generator[None]:
    """The disk's refusals as RepositoryError."""
    try:
        yield
    except OSError as error:
        hint = "Make room or fix the permissions and run the build again, or use another --repository."
        with suppress(OSError):  # a link to itself, say: nothing stands half way there
            if journal.pending(repository):
                hint = "A publish stands here half way. Make room or fix the permissions: any forge command then finishes it."
        raise RepositoryError(
            f"the model repository could not be written: {trees.reason(error, repository)}", where=str(repository), hint=hint
        ) from error
