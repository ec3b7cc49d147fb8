"""TOML to ``Recipe``: every problem of a text at once, each with its key, what was found and what is allowed.

The tables of ``forge.model`` say what is allowed; this room walks them, so that one place states types, ranges and
patterns for the reader, for the JSON schema and for editors. Rules between keys stand in ``forge.contradictions``.
"""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeGuard

import msgspec
import tomli
from msgspec import inspect

from forge.contradictions import contradictions
from forge.errors import Problem, RecipeError
from forge.model import Recipe, RuntimeKind, Source, SourceKind

_TREE = inspect.type_info(Recipe)
_PLAIN = r"^[^\x00-\x1f\x7f]*\Z"


def read(text: str, where: str, runtime: RuntimeKind | None = None) -> Recipe:
    """The recipe that ``text`` states; ``where`` names it in messages. ``runtime`` wins over what the text says.

    Raises RecipeError with all problems of the text.
    """
    try:
        document = tomli.loads(text.removeprefix("\ufeff"))
    except tomli.TOMLDecodeError as error:
        at = f"{where}:{error.lineno}:{error.colno}"
        hint = "see https://toml.io/en/v1.0.0; text values need quotes, tables stand in [brackets]"
        raise RecipeError((Problem(at, f"this is no TOML: {error.msg}", hint),)) from error
    except RecursionError as error:
        raise RecipeError((Problem(where, "this is no recipe: its values are nested too deep"),)) from error
    walk = _Walk()
    clean = walk.table(_TREE, document, "")
    problems = dict(walk.problems)
    for path in ("source", "draft", "convert.calibration"):
        problems.update(_source(_at(clean, path), _at(document, path), path, problems))
    stated = msgspec.convert({"name": "nameless", "source": {}, **clean}, Recipe)
    recipe = stated
    if runtime is not None:
        recipe = msgspec.structs.replace(stated, runtime=msgspec.structs.replace(stated.runtime, kind=runtime))
    found = (*_listed(problems), *contradictions(recipe, frozenset(problems)))
    if found:
        raise RecipeError(tuple(Problem(f"{where}: {each.where}", each.what, each.hint) for each in found))
    return recipe


def _at(document: object, path: str) -> object:
    """What stands at a key path; None where nothing does."""
    for key in path.split("."):
        document = document.get(key) if _is_table(document) else None
    return document


def _listed(problems: dict[str, tuple[str, str]]) -> tuple[Problem, ...]:
    return tuple(Problem(path, what, hint) for path, (what, hint) in problems.items())


def schema() -> dict[str, object]:
    """The JSON schema (2020-12) of a recipe, for editors and other tools."""
    made = msgspec.json.schema(Recipe, ref_template="#/$defs/{name}")
    definitions = made.pop("$defs")
    recipe = definitions.pop("Recipe")
    kinds = [str(kind) for kind in SourceKind]
    for each in ("Source", "Calibration"):
        definitions[each]["oneOf"] = [{"required": [kind]} for kind in kinds]
        definitions[each]["dependentRequired"] = {"wheel": ["file"], "file": ["wheel"]}
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **recipe,
        "title": "forge recipe",
        "$defs": definitions,
    }
    # ECMAScript's regular expressions know no \Z; without the multiline flag their $ means the same.
    return msgspec.json.decode(msgspec.json.encode(whole).replace(rb"\\Z", b"$"), type=dict[str, object])


@dataclass(frozen=True, slots=True)
class Key:
    """One key that a recipe may have: its path, what is allowed there, and its default as TOML ("" where there is none)."""

    path: str
    allowed: str
    default: str


def keys() -> tuple[Key, ...]:
    """Every key of a recipe, as docs/recipe.md lists them; what is a source like ``[source]`` is told by its own keys only."""
    return tuple(_keys(_TREE, ""))


def _keys(tree: inspect.Type, path: str) -> Iterable[Key]:
    for each in tree.fields if isinstance(tree, inspect.StructType) else ():
        here = _join(path, each.encode_name)
        bare = _bare(each.type)
        if isinstance(bare, inspect.StructType) and here != "source" and issubclass(bare.cls, Source):
            yield Key(here, "a table with the keys of [source]", "")
            shared = {_join(here, key) for key in Source.__struct_fields__}
            yield from (key for key in _keys(bare, here) if key.path not in shared)
        elif isinstance(bare, inspect.StructType):
            yield from _keys(bare, here)
        else:
            yield Key(here, _allowed(each.type), _default(each))


def _default(each: inspect.Field) -> str:
    if each.default_factory is dict:
        return "{}"
    plain = each.default is not msgspec.NODEFAULT and each.default is not None
    return msgspec.json.encode(each.default).decode() if plain else ""


@dataclass(frozen=True, slots=True)
class _Walk:
    """One walk over a document: what it found wrong, by key path, and what it could use."""

    problems: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    def table(self, tree: inspect.Type, found: object, path: str) -> dict[str, object]:
        """The usable part of a table whose keys are ``tree``'s fields."""
        assert isinstance(tree, inspect.StructType)  # noqa: S101 - _value has looked
        if not _is_table(found):
            self._note(path, f"found {_show(found)}; allowed: a table", f"write [{path}] and its keys below it")
            return {}
        clean: dict[str, object] = {}
        fields = {each.encode_name: each for each in tree.fields}
        for key, value in found.items():
            here = _join(path, key)
            if key not in fields:
                self._note(here, "unknown key", _meant(key, fields, path))
            elif (usable := self._value(fields[key].type, value, here)) is not None:
                clean[key] = usable
        for each in tree.fields:
            if each.required and each.encode_name not in found:
                self._note(_join(path, each.encode_name), "missing", f"allowed: {_allowed(each.type)}")
        return clean

    def _value(self, tree: inspect.Type, found: object, path: str) -> object:
        """``found`` where it is of ``tree``'s type, or None after saying what is wrong."""
        bare = _bare(tree)
        if isinstance(bare, inspect.StructType):
            return self.table(bare, found, path)
        if isinstance(bare, inspect.DictType):
            return self._mapping(bare, found, path)
        if isinstance(bare, inspect.VarTupleType):
            return self._list(bare, found, path)
        if _fits(bare, found):
            return found
        hint = _guess(found, map(str, _choices(bare)))
        if _is_table(found) and isinstance(bare, inspect.UnionType):
            hint = 'write what stands in it by its whole name, in quotes: "kv_cache_config.max_tokens" = 4096'
        self._note(path, f"found {_show(found)}; allowed: {_allowed(tree)}", hint)
        return None

    def _mapping(self, tree: inspect.DictType, found: object, path: str) -> dict[str, object] | None:
        if not _is_table(found):
            self._note(path, f"found {_show(found)}; allowed: a table", "write {} or { key = value, ... }")
            return None
        clean: dict[str, object] = {}
        for key, value in found.items():
            here = _join(path, key)
            if not _fits(_bare(tree.key_type), key):
                self._note(here, f"unknown key; allowed: {_allowed(tree.key_type)}", _guess(key, _choices(tree.key_type)))
            elif (usable := self._value(tree.value_type, value, here)) is not None:
                clean[key] = usable
        return clean

    def _list(self, tree: inspect.VarTupleType, found: object, path: str) -> list[object] | None:
        if not isinstance(found, list):
            self._note(path, f"found {_show(found)}; allowed: a list of {_allowed(tree.item_type)}", "write it in [ ]")
            return None
        each = msgspec.convert(found, list[object])
        return [
            usable
            for index, item in enumerate(each)
            if (usable := self._value(tree.item_type, item, f"{path}[{index}]")) is not None
        ]

    def _note(self, path: str, what: str, hint: str = "") -> None:
        self.problems[path] = (what, hint)


def _is_table(found: object) -> TypeGuard[dict[str, object]]:
    return isinstance(found, dict)


def _source(clean: object, stated: object, path: str, known: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """What is wrong between the keys of one source table."""
    if not _is_table(clean) or not _is_table(stated) or path in known:
        return {}
    kinds = [str(kind) for kind in SourceKind if kind in stated]
    problems: dict[str, tuple[str, str]] = {}
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none of them"
        problems[path] = (f"found {found}; allowed: exactly one of {_one_of(SourceKind)}", "")
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


def _bare(tree: inspect.Type) -> inspect.Type:
    """The type itself, without description and without "or nothing"."""
    while True:
        if isinstance(tree, inspect.Metadata):
            tree = tree.type
        elif isinstance(tree, inspect.UnionType) and len(some := _not_none(tree)) == 1:
            tree = some[0]
        else:
            return tree


def _not_none(tree: inspect.UnionType) -> list[inspect.Type]:
    return [each for each in tree.types if not isinstance(each, inspect.NoneType)]


def _fits(tree: inspect.Type, found: object) -> bool:
    match tree:
        case inspect.UnionType():
            return any(_fits(_bare(each), found) for each in _not_none(tree))
        case inspect.BoolType():
            return isinstance(found, bool)
        case inspect.StrType():
            # A pattern says itself which control characters it takes; without one there are none.
            return isinstance(found, str) and bool(re.search(tree.pattern or _PLAIN, found))
        case inspect.IntType():
            return type(found) is int and -(2**63) <= found < 2**63 and _within(tree, found)
        case inspect.FloatType():
            return type(found) in (int, float) and isinstance(found, int | float) and _finite(found) and _within(tree, found)
        case inspect.LiteralType() | inspect.EnumType():
            return isinstance(found, str) and found in _choices(tree)
        case _:
            raise AssertionError(f"a recipe has no {tree}")


def _finite(found: float) -> bool:
    return abs(found) < 2**63 and math.isfinite(found)


def _within(tree: inspect.IntType | inspect.FloatType, found: float) -> bool:
    return (
        (tree.ge is None or found >= tree.ge)
        and (tree.gt is None or found > tree.gt)
        and (tree.le is None or found <= tree.le)
        and (tree.lt is None or found < tree.lt)
    )


def _choices(tree: inspect.Type) -> tuple[str, ...]:
    match _bare(tree):
        case inspect.LiteralType() as literal:
            return tuple(map(str, literal.values))
        case inspect.EnumType() as enum:
            return tuple(str(member) for member in enum.cls)
        case _:
            return ()


def _described(tree: inspect.Type) -> str:
    """The description that stands closest to the type, where it has one."""
    if isinstance(tree, inspect.UnionType) and len(some := _not_none(tree)) == 1:
        return _described(some[0])
    if isinstance(tree, inspect.Metadata):
        stated = msgspec.convert(msgspec.structs.asdict(tree)["extra_json_schema"] or {}, dict[str, object])
        return str(stated.get("description", ""))
    return ""


def _allowed(tree: inspect.Type) -> str:
    """What a key may hold, as the end of the sentence "allowed: ..."."""
    bare = _bare(tree)
    match bare:
        case inspect.StructType():
            told = "a table"
        case inspect.BoolType():
            told = "true or false"
        case inspect.StrType():
            told = (bare.pattern and _described(tree)) or "text in quotes, without control characters"
        case inspect.IntType():
            told = f"a whole number{_range(bare)}"
        case inspect.FloatType():
            told = f"a number{_range(bare)}"
        case inspect.VarTupleType():
            told = f"a list of {_allowed(bare.item_type)}"
        case inspect.DictType():
            told = f"a table of {_allowed(bare.key_type)} -> {_allowed(bare.value_type)}"
        case inspect.UnionType():
            told = "text without control characters, a finite number, true or false"
        case _:
            told = f"one of {_one_of(_choices(bare))}"
    return told


def _range(tree: inspect.IntType | inspect.FloatType) -> str:
    low = f"at least {tree.ge}" if tree.ge is not None else f"above {tree.gt}" if tree.gt is not None else ""
    high = f"at most {tree.le}" if tree.le is not None else ""
    told = " and ".join(part for part in (low, high) if part)
    return f", {told}" if told else ""


def _one_of(names: Iterable[str]) -> str:
    return ", ".join(map(str, names))


def _meant(key: str, fields: dict[str, inspect.Field], path: str) -> str:
    """Did you mean a sibling, or a key of another table?"""
    if guess := _guess(key, fields):
        return guess
    homes = [_join(table, name) for table, name in _everywhere() if name == key and table != path]
    if homes:
        return f"did you mean {homes[0]!r}? a key belongs to the [table] above it"
    return f"allowed here: {_one_of(fields)}"


def _everywhere() -> Iterable[tuple[str, str]]:
    for top in _TREE.fields if isinstance(_TREE, inspect.StructType) else ():
        yield "", top.encode_name
        table = _bare(top.type)
        if isinstance(table, inspect.StructType) and table.cls is not Source:
            yield from ((top.encode_name, each.encode_name) for each in table.fields)


def _guess(found: object, names: Iterable[str]) -> str:
    if not isinstance(found, str):
        return ""
    close = difflib.get_close_matches(found.lower(), list(names), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def _join(path: str, key: str) -> str:
    plain = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else repr(key)[:80]
    return f"{path}.{plain}" if path else plain


def _show(found: object) -> str:
    """A value as a person wrote it, with its kind, and not longer than a line bears."""
    if isinstance(found, bool):
        return str(found).lower()
    if isinstance(found, str):
        return f"text {found[:77] + '...' if len(found) > 80 else found!r}"
    if isinstance(found, int | float):
        return f"the number {found if abs(found) < 10**30 or found != found else 'of many digits'}"  # noqa: PLR0124
    if _is_table(found):
        return "a table"
    return "a list" if isinstance(found, list) else f"a {type(found).__name__}"
