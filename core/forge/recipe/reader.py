"""TOML to ``Recipe``: every problem of a text at once, each with its key, what was found and what is allowed.

The tables of ``forge.schema.values`` say what is allowed, so that one place states types, ranges and patterns for the reader,
for the JSON schema and for editors. How a text is held against them is ``forge.recipe.validate``'s business; rules
between keys stand in ``forge.recipe.rules``.
"""

import re
from collections.abc import Iterable

import msgspec
from msgspec import Struct, inspect

from forge.errors import Problem, RecipeError
from forge.recipe.rules import ADAPTERS, contradictions
from forge.recipe.validate import Walk, document, is_table, one_of, schema as form_schema
from forge.schema.values import Recipe, RuntimeKind, SourceKind

_TREE = inspect.type_info(Recipe)


class Looked(Struct, frozen=True):
    """What can be used of a text, and all that is wrong with the rest; ``broken`` keys have a default for what they say."""

    recipe: Recipe
    problems: tuple[Problem, ...]
    broken: frozenset[str]


def read(text: str, where: str, runtime: RuntimeKind | None = None) -> Recipe:
    """The recipe that ``text`` states; RecipeError with all problems of the text."""
    found = looked(text, where, runtime)
    if found.problems:
        raise RecipeError(found.problems)
    return found.recipe


def looked(text: str, where: str, runtime: RuntimeKind | None = None) -> Looked:
    """The same as far as it goes; ``where`` names it in messages. ``runtime`` wins over what the text says.

    RecipeError for what is no TOML at all.
    """
    written = document(text, where)
    walk = Walk(_TREE)
    clean = walk.table(_TREE, written, "")
    problems = dict(walk.problems)
    for path in ("source", "draft", "convert.calibration"):
        problems.update(_source(_at(clean, path), _at(written, path), path, problems))
    adapters = _adapters(clean, written, problems)
    recipe = msgspec.convert({"name": "nameless", "source": {}, **clean, "lora": adapters}, Recipe)
    if runtime is not None:
        recipe = recipe.having(("runtime.kind", runtime))
    broken = frozenset((*problems, *walk.misspelt))
    found = (*_listed(problems), *contradictions(recipe, broken))
    return Looked(recipe, tuple(each.within(where) for each in found), broken)


def concerns(problem: Problem, broken: Iterable[str]) -> bool:
    """Whether a problem speaks of one of these keys: of a default, then, that stands in for what is broken."""
    told = f"{problem.what} {problem.hint}"
    for key in broken:
        spoken = rf"\b{re.escape(key)}\b" if "." in key else rf"\b{re.escape(key)}\."
        if problem.where == key or problem.where.startswith(f"{key}.") or re.search(spoken, told):
            return True
    return False


def _adapters(clean: dict[str, object], written: object, problems: dict[str, tuple[str, str]]) -> list[dict[str, object]]:
    """The usable part of each [[lora]], after what is wrong between the keys of one was said."""
    given, kept = _at(written, "lora"), clean.get("lora")
    tables = msgspec.convert(given, list[object]) if isinstance(given, list) else []
    for at, table in enumerate(tables):
        problems.update(_source(table, table, f"lora[{at}]", problems, ADAPTERS))
    usable = msgspec.convert(kept, list[dict[str, object]]) if isinstance(kept, list) else []
    return [{"name": f"nameless-{at}", **table} for at, table in enumerate(usable)]


def _at(tables: object, path: str) -> object:
    """What stands at a key path; None where nothing does."""
    for key in path.split("."):
        tables = tables.get(key) if is_table(tables) else None
    return tables


def _listed(problems: dict[str, tuple[str, str]]) -> tuple[Problem, ...]:
    return tuple(Problem(path, what, hint) for path, (what, hint) in problems.items())


def schema() -> dict[str, object]:
    """The JSON schema (2020-12) of a recipe, for editors and other tools."""
    whole = form_schema(Recipe, "forge recipe")
    definitions = msgspec.convert(whole["$defs"], dict[str, dict[str, object]])
    for each in ("Source", "Calibration", "Lora"):
        kinds = ADAPTERS if each == "Lora" else SourceKind
        definitions[each]["oneOf"] = [{"required": [str(kind)]} for kind in kinds]
        definitions[each]["dependentRequired"] = {"wheel": ["file"], "file": ["wheel"]}
    return whole | {"$defs": definitions}


def _source(
    clean: object, stated: object, path: str, known: dict[str, tuple[str, str]], offered: Iterable[SourceKind] = SourceKind
) -> dict[str, tuple[str, str]]:
    """What is wrong between the keys of one source table; ``offered`` are the kinds to choose from."""
    if not is_table(clean) or not is_table(stated) or path in known:
        return {}
    kinds = [str(kind) for kind in SourceKind if kind in stated]
    problems: dict[str, tuple[str, str]] = {}
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none of them"
        hint = "" if kinds else 'write one of them, as hub = "owner/name"'
        problems[path] = (f"found {found}; allowed: exactly one of {one_of(offered)}", hint)
        return problems
    kind = kinds[0]
    if kind == "wheel" and "file" not in stated:
        problems[f"{path}.file"] = ("missing", "a wheel needs it: the path of the model's file inside the wheel")
    if kind != "wheel" and "file" in stated:
        problems[f"{path}.file"] = (f"belongs to a wheel, and this source is {kind}", "take it away")
    if kind not in ("hub", "git") and "revision" in stated:
        hint = "take it away; a wheel's version is pinned by ==, a path's by its files"
        problems[f"{path}.revision"] = (f"belongs to hub and git, and this source is {kind}", hint)
    return problems
