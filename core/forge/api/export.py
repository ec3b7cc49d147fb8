"""A deployment with all that it stands on, for a cluster: its files read, its images and sizes looked up."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from forge import errors
from forge.build.facts import image
from forge.build.together import Joint
from forge.errors import ForgeError, Problem, RecipeError
from forge.files import texts
from forge.fit.report import Report
from forge.kubernetes.objects import name
from forge.kubernetes.pod import Exported, Model
from forge.schema.values import Recipe, RuntimeKind, Source

_AGAIN = (RecipeError, errors.PluginError, errors.StepError, errors.HostError, errors.LockError, errors.ConfigError)
EXITS = tuple(each.exit_code for each in _AGAIN)
"""Exit codes of what would end so again: a hub or a shared store that is away for a moment is not among them."""


class Verbs(Protocol):
    """The part of Forge that reads and reckons."""

    def joint(self, recipes: Sequence[str | Path], *, deployed: bool = False) -> Joint: ...
    def read(self, path: str | Path, runtime: RuntimeKind | None = None) -> Recipe: ...
    def fit(self, recipes: Sequence[str | Path], *, gpu: str = "", runtime: RuntimeKind | None = None) -> Report: ...


def exported(verbs: Verbs, what: str | Path, called: str | None = None) -> Exported:
    """The deployment, or the one recipe, of this file; RecipeError where it stands on files of this machine, or on two images.

    Its objects are ``called`` as the file, unless somebody says so. Sizes are left out where nobody can tell them from here.
    """
    joint = verbs.joint([what])
    recipes = [joint.path(member) for member in joint.stated.members]
    read = [verbs.read(path) for path in recipes]
    _require_portable(recipes, read)
    named = [*([joint.file] if joint.file else []), *recipes]
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in named])
    files = dict(_texts(root, named, zip(recipes, read, strict=True)))
    sizes = _sizes(verbs, what)
    stated = [member.name or recipe.name for member, recipe in zip(joint.stated.members, read, strict=True)]
    models = tuple(
        Model(
            mine,
            _within(root, path),
            recipe.runtime.kind,
            image(recipe).image if recipe.runtime.contained else "",
            0 if recipe.runtime.kind is RuntimeKind.TWIN else recipe.convert.tp * recipe.convert.pp,
            *sizes.get(recipe.name, (0, 0)),
        )
        for mine, path, recipe in zip(stated, recipes, read, strict=True)
    )
    file = joint.file or recipes[0]
    return Exported(name(called or file.stem), _within(root, file), files, models)


def _require_portable(recipes: Sequence[Path], read: Sequence[Recipe]) -> None:
    problems = [
        Problem(f"{path}: {source.address}", "stands on this machine, and no pod sees it", _ELSEWHERE)
        for path, recipe in zip(recipes, read, strict=True)
        for source in _sources(recipe)
        if source.path or source.gguf
    ]
    images = {image(recipe).image for recipe in read if recipe.runtime.contained}
    if len(images) > 1:
        found = " and ".join(sorted(images))
        problems.append(
            Problem(str(recipes[0]), f"one server has one image, and these recipes name {found}", "name one of them")
        )
    if problems:
        raise RecipeError(tuple(problems))


_ELSEWHERE = "name a hub repository, a git repository or a wheel"


def _sources(recipe: Recipe) -> Iterator[Source]:
    yield from (source for source in (recipe.source, recipe.draft, recipe.convert.calibration) if source is not None)
    yield from recipe.lora


def _texts(root: str, named: Sequence[Path], read: Iterator[tuple[Path, Recipe]]) -> Iterator[tuple[str, str]]:
    """All files of the deployment, by their paths below ``root``: itself, its recipes, their locks and prompts."""
    for path in named:
        yield _within(root, path), texts.read(path, errors.SourceError, "this file")
    for path, recipe in read:
        lock = path.with_name(f"{path.name}.lock")
        if (said := texts.there(lock, errors.LockError, "the lock")) is not None:
            yield _within(root, lock), said
        if recipe.verify.prompts:
            prompts = path.parent / recipe.verify.prompts
            yield _within(root, prompts), texts.read(prompts, errors.SourceError, "the file of [verify] prompts")


def _within(root: str, path: Path) -> str:
    found = os.path.relpath(path, root)
    if found.startswith(os.pardir):
        what = f"stands outside {root}, where the recipes are: a pod would not find it"
        raise RecipeError((Problem(str(path), what, "move it beside the recipe"),))
    return Path(found).as_posix()


def _sizes(verbs: Verbs, what: str | Path) -> dict[str, tuple[int, int]]:
    """Recipe -> bytes of the machine's memory while it serves, and while it is built; empty where they are not known."""
    with suppress(ForgeError):
        fits = verbs.fit([what]).fits
        return {
            each.name: (sum(each.weights.values()) + (each.kv_whole if each.in_host_memory else 0), each.build_host.high)
            for each in fits
        }
    return {}
