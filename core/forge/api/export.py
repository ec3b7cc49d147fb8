"""A deployment with all that it stands on, for a cluster: its files read, its images and sizes looked up."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from forge import errors
from forge.api.forge import Forge
from forge.build.recipe_facts import image, opened, sources
from forge.build.together import Joint
from forge.errors import ForgeError, Problem, RecipeError
from forge.files import texts
from forge.kubernetes.objects import name
from forge.kubernetes.pod import Exported, Model
from forge.plan.one_server import kind
from forge.schema.values import Recipe, RuntimeKind

_AGAIN = (RecipeError, errors.PluginError, errors.StepError, errors.HostError, errors.LockError, errors.ConfigError)
EXITS = tuple(each.exit_code for each in _AGAIN)
"""Exit codes of what would end so again: a hub or a shared store that is away for a moment is not among them."""


def exported(shop: Forge, what: str | Path, called: str | None = None) -> Exported:
    """The deployment, or the one recipe, of this file; RecipeError where it stands on files of this machine, or on two images.

    Its objects are ``called`` as the file, unless somebody says so. Sizes are left out where nobody can tell them from here.
    """
    joint = shop.joint([what])
    _require_relative(joint)
    recipes = [joint.path(member) for member in joint.stated.members]
    read = [shop.read(path) for path in recipes]
    _require_portable(recipes, read)
    named = [*([joint.file] if joint.file else []), *recipes]
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in named])
    files = dict(_texts(root, named, zip(recipes, read, strict=True)))
    sizes = _sizes(shop, what) or [(0, 0)] * len(read)
    stated = [member.name or recipe.name for member, recipe in zip(joint.stated.members, read, strict=True)]
    models = tuple(
        Model(
            mine,
            _within(root, path),
            recipe.runtime.kind,
            image(recipe).image if recipe.runtime.contained else "",
            0 if recipe.runtime.kind is RuntimeKind.TWIN else recipe.convert.tp * recipe.convert.pp,
            *size,
        )
        for mine, path, recipe, size in zip(stated, recipes, read, sizes, strict=True)
    )
    file = joint.file or recipes[0]
    return Exported(name(called or file.stem), _within(root, file), files, models)


def _require_relative(joint: Joint) -> None:
    """RecipeError for recipes that a deployment names by paths of this machine."""
    told = "is a path of this machine, and no pod has it there"
    hint = "write it relative to the deployment"
    members = enumerate(joint.stated.members if joint.file else ())
    if named := [(at, member.recipe) for at, member in members if os.path.isabs(member.recipe)]:
        raise RecipeError(tuple(Problem(f"{joint.file}: recipes[{at}]", f"{path} {told}", hint) for at, path in named))


def _require_portable(recipes: Sequence[Path], read: Sequence[Recipe]) -> None:
    problems = [
        Problem(f"{path}: {source.address}", "stands on this machine, and no pod sees it", _ELSEWHERE)
        for path, recipe in zip(recipes, read, strict=True)
        for source in sources(recipe)
        if source.path or source.gguf
    ]
    problems += [
        Problem(f"{path}: {address}", "holds a password or a token, which a manifest would show", _ELSEWHERE)
        for path, recipe in zip(recipes, read, strict=True)
        for address in opened(recipe)
    ]
    if len(kinds := {kind(recipe) for recipe in read}) > 1:
        what = f"one server cannot serve them all: they stand on {' and on '.join(sorted(kinds))}"
        problems.append(Problem(str(recipes[0]), what, "export a deployment for each (docs/deployments.md)"))
    images = {image(recipe).image for recipe in read if recipe.runtime.contained}
    if len(images) > 1:
        found = " and ".join(sorted(images))
        problems.append(
            Problem(str(recipes[0]), f"one server has one image, and these recipes name {found}", "name one of them")
        )
    if problems:
        raise RecipeError(tuple(problems))


_ELSEWHERE = "name a hub repository, a git repository or a wheel"


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


def _sizes(shop: Forge, what: str | Path) -> list[tuple[int, int]]:
    """For each recipe bytes of the machine's memory while it serves, and while it is built; empty where they are not known."""
    with suppress(ForgeError):
        fits = shop.fit([what]).fits
        return [
            (sum(each.weights.values()) + (each.kv_whole if each.in_host_memory else 0), each.build_host.high) for each in fits
        ]
    return []
