"""What stands behind a served model (``forge show``), and what is served with what it uses (``forge ps``)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from msgspec import Struct

from forge.client.stops import total
from forge.client.types import ModelMetadata
from forge.errors import ForgeError, InferenceError, ServerError
from forge.files import texts
from forge.repository import publish
from forge.schema.manifest import PublishedModel, RecipeFile
from forge.schema.values import LimitsTable, Role, RuntimeKind, SamplingTable
from forge.serve.as_built import limits
from forge.serve.lookup import Target
from forge.serve.server_types import Running, Server
from forge.serve.vitals import Usage
from forge.store.store import Store

_ASKED = (Role.BLS, Role.ENSEMBLE)
"""What clients ask; the other models are asked by these."""


class ModelUse(Struct, frozen=True):
    """One recipe's models on one server, in bytes and requests; None is not known."""

    name: str
    runtime: RuntimeKind
    repository: str
    address: str
    seconds: float | None
    host: int | None
    gpu: int | None
    requests: int
    failed: int


class ServerUse(Struct, frozen=True):
    """One server and the recipes that it serves; its memory is that of all its processes, those of models among them."""

    repository: str
    address: str
    seconds: float | None
    host: int | None
    gpu: int | None
    models: tuple[ModelUse, ...]


class Source(Struct, frozen=True):
    """Where the weights come from, as the store noted it when they were fetched; empty where it has forgotten."""

    name: str = ""
    revision: str = ""


class RecipeNow(Struct, frozen=True):
    """The recipe that a model was built by: its file, the hex blake3 that it had, and whether it is still that one."""

    file: str
    digest: str
    state: Literal["unchanged", "changed", "gone"]


class Shown(Struct, frozen=True):
    """All that stands behind one published model. While nobody serves it ``address`` is empty, ``tensors`` and ``use`` None."""

    name: str
    runtime: RuntimeKind
    repository: str
    address: str
    recipe: RecipeNow | None
    """None where an older forge published it and noted none."""
    source: Source
    prefix: str
    models: Mapping[str, str]
    built: Mapping[str, int]
    """The limits that it was built for."""
    sampling: SamplingTable
    limits: LimitsTable
    keys: Mapping[str, str]
    tensors: ModelMetadata | None
    use: ModelUse | None


class Exhibit(Struct, frozen=True):
    """Looks at what runs and at what was published; starts and changes nothing."""

    store: Store
    server: Server
    running: Callable[[], tuple[Running, ...]]
    target: Callable[[str, str | Path | None], Target]
    metadata: Callable[[str, str], ModelMetadata]
    place: Callable[[str | Path | None], Path]
    """A repository as it was named, or the usual one."""

    def uses(self) -> tuple[ServerUse, ...]:
        """Every server of this home with what it uses."""
        return tuple(self._use(each) for each in self.running())

    def show(self, name: str, repository: str | Path | None = None) -> Shown:
        """The served model of that name; one that is only published where none is. InferenceError where neither is there."""
        try:
            target = self.target(name, repository)
        except (ServerError, InferenceError):
            place = self.place(repository)
            if found := publish.inventory(place).find(name):
                return self._shown(Target("", found, place))
            raise
        return self._shown(target)

    def _use(self, running: Running) -> ServerUse:
        seen = self.server.usage(running)
        address = running.ports.at(running.ports.grpc)
        models = tuple(_recipes(running, seen, address))
        return ServerUse(running.repository, address, seen.seconds, seen.host, seen.gpu, models)

    def _shown(self, target: Target) -> Shown:
        model, place = target.model, target.repository
        tensors: ModelMetadata | None = None
        use: ModelUse | None = None
        if target.address:
            with suppress(ForgeError):  # it is served and does not speak: `forge status` says more
                tensors = self.metadata(target.address, model.front)
            uses = (use for server in self.uses() for use in server.models)
            use = next((each for each in uses if (each.name, each.repository) == (model.name, str(place))), None)
        return Shown(
            model.name,
            model.runtime,
            str(place),
            target.address,
            _recipe(model),
            self._source(model),
            model.prefix,
            {str(role): folder for role, folder in model.roles.items()},
            limits(place, model),
            model.sampling,
            model.limits,
            model.keys,
            tensors,
            use,
        )

    def _source(self, model: PublishedModel) -> Source:
        held = self.store.find(model.keys.get(f"{model.name}: model", ""))
        if held is None:
            return Source()
        said = held.manifest.provenance.inputs
        return Source(said.get("source.name", ""), said.get("source.revision", ""))


def _recipe(model: PublishedModel) -> RecipeNow | None:
    if (was := model.recipe) is None:
        return None
    try:
        now = RecipeFile.of(was.file, texts.content(Path(was.file)))
    except texts.Odd:
        return RecipeNow(was.file, was.digest, "gone")
    return RecipeNow(was.file, was.digest, "unchanged" if now == was else "changed")


def _recipes(running: Running, seen: Usage, address: str) -> Iterator[ModelUse]:
    for place in running.repositories:
        for model in publish.inventory(Path(place)).models:
            if model.front not in running.models:
                continue
            parts = [seen.models[folder] for folder in model.roles.values() if folder in seen.models]
            asked = [folder for role, folder in model.roles.items() if role in _ASKED] or [model.front]
            counted = [seen.models[folder] for folder in asked if folder in seen.models]
            yield ModelUse(
                model.name,
                model.runtime,
                place,
                address,
                seen.seconds,
                total(part.host for part in parts),
                total(part.gpu for part in parts),
                sum(each.requests for each in counted),
                sum(each.failed for each in counted),
            )
