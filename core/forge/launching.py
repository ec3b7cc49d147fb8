"""From what a repository holds to what starting a server on it needs."""

import json
from pathlib import Path

from forge.contained import IMAGE
from forge.errors import ServerError
from forge.manifest import Manifest, PublishedModel, Serving
from forge.model import Role, RuntimeKind
from forge.ports import Launch, Ports
from forge.store import Store

AGAIN = "build it again: `forge build RECIPE`"


def launch(place: Path, held: Manifest, store: Store, ports: Ports, *, detach: bool) -> Launch:
    """All that a server for every model of ``held`` needs; ServerError where one server cannot serve them all."""
    tables = [model.serving or Serving() for model in held.models]
    models = tuple(folder for model in held.models for folder in model.roles.values())
    if any(table.image for table in tables):
        images = {_image(place, table, store) for table in tables}
        if len(images) > 1:
            raise _different(place, "images")
        gpus = sorted({table.gpus for table in tables if table.gpus})
        return Launch(
            place,
            models,
            ports=ports,
            detach=detach,
            image=images.pop(),
            gpus="all" if "all" in gpus else ",".join(gpus),
            engines=tuple(folder for model in held.models for folder in _engines(model)),
            world=max(table.world for table in tables),
        )
    if len({(table.environment, table.backends) for table in tables}) > 1:
        raise _different(place, "environments")
    environment, backends = (_folder(place, key, store) for key in (tables[0].environment, tables[0].backends))
    return Launch(place, models, environment, backends, ports, tables[0].triton, detach)


def _engines(model: PublishedModel) -> tuple[str, ...]:
    """The folders that TensorRT-LLM's own backend serves; llmapi's model is Python and starts its ranks itself."""
    if model.runtime is not RuntimeKind.ENGINE:
        return ()
    return tuple(model.roles[role] for role in (Role.TENSORRT_LLM, Role.DRAFT) if role in model.roles)


def _image(place: Path, table: Serving, store: Store) -> str:
    """The id of the image that serves a model."""
    stated = json.loads((_folder(place, table.image, store) / IMAGE).read_text(encoding="utf-8"))
    return str(stated["id"])


def _folder(place: Path, key: str, store: Store) -> Path:
    artifact = store.find(key) if key else None
    if artifact is None:
        raise ServerError("what serves it is no longer held", where=str(place), hint=AGAIN)
    return artifact.path


def _different(place: Path, what: str) -> ServerError:
    hint = "build all of them again in one `forge build`, or give each a --repository of its own"
    return ServerError(f"its models were built for different {what}", where=str(place), hint=hint)
