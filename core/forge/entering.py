"""What the manifest will say of a model that is about to be published, and the order in which several can be."""

from collections.abc import Sequence
from pathlib import Path

from forge import publishing
from forge.errors import RepositoryError
from forge.intake import NO_GPUS
from forge.manifest import PublishedModel, Serving
from forge.model import RuntimeKind
from forge.order import Order
from forge.steps import Entry, LayBackends, Step


def in_order(place: Path, models: Sequence[PublishedModel]) -> tuple[PublishedModel, ...]:
    """The models as they can be published one after another: those already there first, for one may give up plain names.

    RepositoryError where one has no room, before anything is built.
    """
    held = publishing.inventory(place)
    if len({model.runtime is RuntimeKind.TWIN for model in (*held.models, *models)}) > 1:
        what = "one server serves a repository, and the twin's models and those of NVIDIA's container need two"
        raise RepositoryError(what, where=str(place), hint="publish them into another --repository")
    ordered = sorted(models, key=lambda model: held.find(model.name) is None)
    for model in ordered:
        publishing.check_room(place, held, model)
        held = held.having(model)
    return tuple(ordered)


def published(order: Order, entry: Entry) -> PublishedModel:
    steps: dict[str, Step] = {}
    entry.gather(steps)
    return PublishedModel(
        name=order.recipe.name,
        entry=entry.step.key,
        runtime=order.recipe.runtime.kind,
        roles=entry.names.all(),
        prefix=entry.names.prefix,
        keys={step.name: key for key, step in steps.items()},
        serving=_serving(order, entry),
        sampling=order.recipe.sampling,
    )


def _serving(order: Order, entry: Entry) -> Serving:
    """What a server for this model stands on: two artifacts here, or the family's image."""
    if entry.serving is None:
        image = next(step for name, step in entry.step.needs if name == "image")
        recipe = order.recipe
        if recipe.runtime.kind is RuntimeKind.LLMAPI:  # built without a GPU; its one process starts those of the other ranks
            return Serving(image=image.key, gpus="" if recipe.runtime.gpus == NO_GPUS else recipe.runtime.gpus)
        return Serving(image=image.key, gpus=order.gpus, world=recipe.convert.tp * recipe.convert.pp)
    environment, backends = entry.serving
    triton = backends.action.triton if isinstance(backends.action, LayBackends) else ""
    return Serving(environment=environment.key, backends=backends.key, triton=triton)
