"""What the manifest will say of a model that is about to be published, and the order in which several can be."""

import os
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from forge.errors import RepositoryError
from forge.files import texts
from forge.plan.resolved import Resolved
from forge.plan.steps import Assemble, Entry, LayBackends, Rename, Step
from forge.repository import bls, publish
from forge.repository.folders import Places
from forge.schema.manifest import Manifest, PublishedModel, Serving
from forge.schema.values import INSTALLED, LOCAL, NO_GPUS, Names, Role, RuntimeKind, TextFile
from forge.store.store import Store

DRAFT_LEN = 10
"""What the variant draft-target builds its engine for where the recipe says nothing."""


class Renamed(Struct, frozen=True):
    """A model that stands in a repository, as it will be published under its prefix, and the step that makes it so."""

    model: PublishedModel
    step: Step


def in_order(place: Path, models: Sequence[PublishedModel]) -> tuple[PublishedModel, ...]:
    """The models as they can be published one after another: those already there first, for one may give up plain names.

    RepositoryError where one has no room, before anything is built.
    """
    try:
        return _in_order(place, publish.inventory(place), models)
    except RepositoryError:
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise
    with publish.quiet(place) as held:  # what was in the way may have been another's publish, half done
        return _in_order(place, held, models)


def _in_order(place: Path, held: Manifest, models: Sequence[PublishedModel]) -> tuple[PublishedModel, ...]:
    if len({_server(model) for model in (*held.models, *models)}) > 1:
        what = "the twin's models, vLLM's, and those of NVIDIA's images with vLLM or TensorRT-LLM need a repository one each"
        raise RepositoryError(
            what, where=str(place), hint="publish them into another --repository, and serve that on ports of its own"
        )
    there = {model.name for model in held.models}
    ordered = sorted(models, key=lambda model: model.name not in there)
    places = Places(place, held)
    for model in ordered:
        places.admit(model)
    return tuple(ordered)


def _server(model: PublishedModel) -> tuple[str, bool]:
    """What kind of Triton serves it; engines and llmapi share one."""
    held = model.serving
    return ("", True) if model.runtime.contained else (model.runtime, held is not None and held.contained)


def require_prefixes(place: Path) -> None:
    """RepositoryError where a model has plain names: nothing can be added beside it as it is."""
    for model in publish.inventory(place).models:
        if not model.prefix:
            what = f"{model.name!r} has plain folder names (ensemble, ...), and nothing can stand beside them"
            hint = f"--rename-plain publishes it under its prefix, and clients then ask {model.name}-{Role.BLS}"
            raise RepositoryError(what, where=str(place), hint=f"{hint}; or use another --repository")


def renamed(place: Path, coming: Sequence[str], store: Store) -> tuple[Renamed, ...]:
    """The plain models at ``place`` under their prefixes, but for those that are ``coming`` under theirs anyway.

    Out of the entries that they were published from: neither recipe nor network is asked. RepositoryError where the store
    has lost an entry, or the model's code cannot be told other names.
    """
    plain = [model for model in publish.inventory(place).models if not model.prefix and model.name not in coming]
    return tuple(_renamed(place, model, store) for model in plain)


def _renamed(place: Path, model: PublishedModel, store: Store) -> Renamed:
    held = store.find(model.entry)
    if held is None:
        what = f"{model.name!r} cannot be renamed: the entry that it was published from is not in this store"
        raise RepositoryError(what, where=str(place), hint="build it together with the others: `forge build A B`")
    before = model.names
    names = Names(model.name, before.roles, before.inside)
    code = _code(held.path / before.of(Role.BLS)) if Role.BLS in before.roles else ()
    texts = tuple(TextFile(f"{Role.BLS}/{text.path}", text.content) for text in bls.beside(code))
    for found in bls.problems(code, draft=Role.DRAFT in before.roles) if code else ():
        raise RepositoryError(
            f"{model.name!r} cannot be renamed: {found.what}", where=found.where, hint="use another --repository"
        )
    step = Step(f"{model.name}: entry", Rename(model.entry, model.name, before, names, texts))
    keys = {**model.keys, step.name: step.key}
    edits = bls.edits(names, texts)
    return Renamed(
        replace(model, entry=step.key, prefix=names.prefix, roles=names.all(), keys=keys, edits=edits, linked=True), step
    )


def _code(folder: Path) -> tuple[TextFile, ...]:
    """The Python of a model, by its paths in the folder."""
    files = sorted(folder.rglob("*.py"))
    return tuple(TextFile(file.relative_to(folder).as_posix(), texts.read(file, RepositoryError)) for file in files)


def published(resolved: Resolved, entry: Entry) -> PublishedModel:
    """What the manifest will say of one recipe's models."""
    steps: dict[str, Step] = {}
    entry.gather(steps)
    action = entry.step.action
    return PublishedModel(
        name=resolved.recipe.name,
        entry=entry.step.key,
        runtime=resolved.recipe.runtime.kind,
        roles=entry.names.all(),
        prefix=entry.names.prefix,
        keys={step.name: key for key, step in steps.items()},
        serving=_serving(resolved, entry),
        sampling=resolved.recipe.sampling,
        limits=resolved.recipe.limits,
        num_draft_tokens=(resolved.recipe.speculation.max_draft_len or DRAFT_LEN) if Role.DRAFT in entry.names.roles else None,
        inside=entry.names.inside,
        edits=bls.edits(entry.names, action.skeletons) if isinstance(action, Assemble) else (),
        recipe=resolved.file,
    )


def _serving(resolved: Resolved, entry: Entry) -> Serving:
    """What a server for this model stands on: artifacts here, or an image."""
    if entry.serving is None:
        image = next(step for name, step in entry.step.needs if name == "image")
        recipe = resolved.recipe
        triton = INSTALLED if resolved.facts.toolchain.image == LOCAL else ""
        gpus = resolved.gpus
        if recipe.runtime.kind is not RuntimeKind.ENGINE:  # built without a GPU
            gpus = "" if recipe.runtime.gpus == NO_GPUS else recipe.runtime.gpus
        return Serving(image=image.key, gpus=gpus, world=recipe.convert.tp * recipe.convert.pp, triton=triton)
    environment, backends, *vllm = entry.serving
    triton = backends.action.triton if isinstance(backends.action, LayBackends) else ""
    return Serving(environment=environment.key, backends=backends.key, triton=triton, vllm=vllm[0].key if vllm else "")
