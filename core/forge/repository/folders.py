"""Which folders of a model repository are whose, and whether one more model has room there."""

import os
from pathlib import Path

from forge.errors import RepositoryError
from forge.repository.journal import is_marked
from forge.schema.manifest import Manifest, PublishedModel
from forge.schema.values import Role


def whole(repository: str | Path) -> Path:
    """The one name of a repository: absolute, without ``..`` and symbolic links.

    Otherwise each spelling of it has a server of its own, and none is told what is published under another.
    """
    return Path(os.path.realpath(repository))


class Places:
    """The folders of a repository, told apart once: admitting one more model costs the same however many stand there."""

    def __init__(self, repository: Path, held: Manifest) -> None:
        self._repository = repository
        self._models: dict[str, PublishedModel] = {}
        self._owners: dict[str, str] = {}
        self._plain: dict[str, None] = {}
        for model in held.models:
            self._add(model)

    def admit(self, model: PublishedModel) -> None:
        """Let ``model`` stand here in the place of any of its name; RepositoryError where something is in the way."""
        self._require_prefixes(model)
        for folder in model.folders:
            owner = self._owners.get(folder)
            if owner not in (None, model.name):
                raise RepositoryError(
                    f"the folder {folder!r} belongs to the model {owner!r}",
                    where=str(self._repository),
                    hint="Give one of the two recipes another name, or use another --repository.",
                )
            place = self._repository / folder
            if owner is None and os.path.lexists(place) and not is_marked(place):
                raise RepositoryError(
                    f"the folder {folder!r} is in the way, and forge did not put it there",
                    where=str(place),
                    hint="Move it away, or use another --repository; forge overwrites only what its manifest lists.",
                )
        self._drop(model.name)
        self._add(model)

    def _require_prefixes(self, model: PublishedModel) -> None:
        """Plain names (ensemble, ...) are one model's, and it stands alone."""
        found = next((name for name in self._plain if name != model.name), None)
        if found is None and not model.prefix:
            found = next((name for name in self._models if name != model.name), None)
        if found is None:
            return
        other = self._models[found]
        plain, beside = (other, model) if not other.prefix else (model, other)
        raise RepositoryError(
            f"{plain.name!r} has plain folder names (ensemble, ...), so {beside.name!r} cannot stand beside it",
            where=str(self._repository),
            hint=_way_out(plain, model),
        )

    def _add(self, model: PublishedModel) -> None:
        self._models[model.name] = model
        self._owners |= dict.fromkeys(model.folders, model.name)
        if not model.prefix:
            self._plain[model.name] = None

    def _drop(self, name: str) -> None:
        former = self._models.pop(name, None)
        self._plain.pop(name, None)
        for folder in former.folders if former else ():
            self._owners.pop(folder, None)


def _way_out(plain: PublishedModel, coming: PublishedModel) -> str:
    """How a model with plain names and another can share a repository."""
    if plain is coming and coming.prefix == "":
        return f"Give {coming.name!r} its prefix: `forge add`, or --prefixed; or use another --repository."
    renamed = f"--rename-plain publishes {plain.name!r} under its prefix, and clients then ask {plain.name}-{Role.BLS}"
    return f"{renamed}; or build both together: `forge build A B`; or use another --repository."
