"""What a repository holds, model by model, as ``forge list`` shows it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from forge import trees
from forge.manifest import Manifest, PublishedModel
from forge.model import RuntimeKind
from forge.ports import Running


@dataclass(frozen=True, slots=True)
class Listed:
    """One published model. ``models`` is role -> folder, ``size`` bytes in the repository, ``served`` a gRPC address."""

    name: str
    runtime: RuntimeKind
    prefix: str
    models: Mapping[str, str]
    assets: str
    size: int
    key: str
    served: str = ""


def listed(place: Path, held: Manifest, servers: Iterable[Running]) -> tuple[Listed, ...]:
    """Every model of the repository at ``place``; ``servers`` are those that run."""
    running = tuple(servers)
    return tuple(_listed(place, model, running) for model in held.models)


def offering(place: Path, model: PublishedModel, servers: Iterable[Running]) -> Running | None:
    """The server that offers ``model`` out of this repository."""
    fits = (one for one in servers if str(place) in one.repositories and model.front in one.models)
    return next(fits, None)


def _listed(place: Path, model: PublishedModel, servers: tuple[Running, ...]) -> Listed:
    server = offering(place, model, servers)
    return Listed(
        model.name,
        model.runtime,
        model.prefix,
        {str(role): folder for role, folder in model.roles.items()},
        model.assets,
        _size(place, model),
        model.entry,
        f"{server.ports.host}:{server.ports.grpc}" if server else "",
    )


def _size(place: Path, model: PublishedModel) -> int:
    folders = [place / folder for folder in model.folders if (place / folder).is_dir()]
    return sum(item.status.st_size for folder in folders for item in trees.walk(folder) if item.is_file)
