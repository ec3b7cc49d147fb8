"""Lays entries: one model's part of a repository, from its skeletons or from an entry under other names."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from forge.files.trees import Laid, link, walk
from forge.plan.steps import Assemble, Rename
from forge.repository import bls, config
from forge.repository.config import CONFIG, ROOT
from forge.schema.adapters import WEIGHTS
from forge.schema.values import Edit, Role, TextFile

_YAML = "1/model.yaml"


def write(out: Path, texts: Iterable[TextFile]) -> None:
    """Every text at its place under ``out``."""
    for text in texts:
        target = out / text.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.content, encoding="utf-8")


def assemble(action: Assemble, needs: Mapping[str, Path], out: Path) -> Laid:
    """Configs filled, the skeletons' other files as they are, and the assets by hard link out of ``needs``.

    StepError for weights of an adapter that no server could add.
    """
    rendered = config.render(action.names, action.skeletons, action.settings)
    _compile(rendered, bls.edits(action.names, action.skeletons))
    write(out, (*rendered, *action.texts))
    laid = Laid()
    for each in action.links:
        if each.path == WEIGHTS:
            from forge.build import adapter_arrays  # numpy is for those who have adapters

            adapter_arrays.require_numbers(needs[each.need] / each.path)
        target = out / each.target
        target.parent.mkdir(parents=True, exist_ok=True)
        laid += link(needs[each.need] / each.path, target)
    return laid


def rename(action: Rename, entry: Path, out: Path) -> Laid:
    """The same model under other folders: names and the paths into them are written anew, everything else is linked."""
    roles = {action.before.of(role): role for role in action.names.roles}
    joining = tuple(TextFile(f"{action.names.of(Role(top))}/{rest}", text) for top, rest, text in _parts(action.texts))
    _compile(joining, bls.edits(action.names, action.texts))
    laid = Laid()
    for item in walk(entry):
        top, slash, rest = item.relative.partition("/")
        role = roles.get(top)
        place = out / (f"{action.names.of(role)}{slash}{rest}" if role else item.relative)
        if item.is_folder:
            place.mkdir()
        elif item.is_link:
            place.symlink_to(os.readlink(item.path))
        elif role and rest in (CONFIG, _YAML):
            place.write_text(_renamed(action, role, rest, item.path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            laid += link(item.path, place)
    write(out, joining)
    return laid


def _renamed(action: Rename, role: Role, rest: str, text: str) -> str:
    before, after = (f"{ROOT}/{names.assets(action.recipe)}" for names in (action.before, action.names))
    if rest == _YAML:  # of forge's own making: a path in it is a whole scalar
        return text.replace(f"{before}/", f"{after}/")
    joined = {Role(top) for top, _, _ in _parts(action.texts)}
    renamed = config.rename(text, action.names, role, bls.FILE if role in joined else "")
    return config.relocate(renamed, after, before)


def _parts(texts: tuple[TextFile, ...]) -> list[tuple[str, str, str]]:
    """(role, path in its folder, content)"""
    return [(text.path.partition("/")[0], text.path.partition("/")[2], text.content) for text in texts]


def _compile(texts: Iterable[TextFile], edits: tuple[Edit, ...]) -> None:
    """RepositoryError where Python that forge puts into another's model is none."""
    ours = {edit.file for edit in edits}
    for text in texts:
        if text.path in ours and text.path.endswith(".py"):
            bls.compiled(text.path, text.content)
