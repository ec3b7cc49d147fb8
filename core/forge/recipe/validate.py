"""Documents held against Structs: every problem of a text at once, each with its key, what was found and what is allowed.

The Structs say what is allowed; this module walks them, so that one place states types, ranges and patterns for the reader, for
the JSON schema and for editors.
"""

import math
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import TypeGuard

import msgspec
import tomli
from msgspec import Struct, field, inspect

from forge.errors import Problem, RecipeError, meant, near

_SCALARS = 4
"""Kinds of a union that takes any plain value."""
_PLAIN = r"^[^\x00-\x1f\x7f]*\Z"


def document(text: str, where: str, what: str = "recipe") -> dict[str, object]:
    """The tables that a TOML text states; RecipeError, with the place inside it, for what is no TOML."""
    try:
        return tomli.loads(text.removeprefix("\ufeff"))
    except tomli.TOMLDecodeError as error:
        at = f"{where}:{error.lineno}:{error.colno}"
        hint = "see https://toml.io/en/v1.0.0; text values need quotes, tables stand in [brackets]"
        raise RecipeError((Problem(at, f"this is no TOML: {error.msg}", hint),)) from error
    except RecursionError as error:
        hint = "write the values at the depth that the documentation shows"
        raise RecipeError((Problem(where, f"this is no {what}: its values are nested too deep", hint),)) from error


def schema(form: type[msgspec.Struct], title: str) -> dict[str, object]:
    """The JSON schema (2020-12) of a form, for editors and other tools; its definitions stand under ``$defs``."""
    made = msgspec.json.schema(form)
    definitions = made.pop("$defs")
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **definitions.pop(form.__name__),
        "title": title,
        "$defs": definitions,
    }
    # ECMAScript's regular expressions know no \Z; without the multiline flag their $ means the same.
    return msgspec.json.decode(msgspec.json.encode(whole).replace(rb"\\Z", b"$"), type=dict[str, object])


class Walk(Struct, frozen=True):
    """One walk over a document whose form is ``root``: what it found wrong, by key path, and what it could use."""

    root: inspect.Type
    problems: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    misspelt: set[str] = field(default_factory=set[str])
    """Keys that were probably meant by unknown ones: nobody can say what they hold."""

    def table(self, tree: inspect.Type, found: object, path: str) -> dict[str, object]:
        """The usable part of a table whose keys are ``tree``'s fields."""
        assert isinstance(tree, inspect.StructType)  # noqa: S101 - _value has looked
        if not is_table(found):
            self._note(path, f"found {_show(found)}; allowed: a table", f"write [{path}] and its keys below it")
            return {}
        clean: dict[str, object] = {}
        fields = {each.encode_name: each for each in tree.fields}
        for key, value in found.items():
            here = join(path, key)
            if key not in fields:
                self._note(here, "unknown key", _meant(key, fields, path, self.root))
                self.misspelt.update(join(path, close) for close in [near(key, fields)] if close)
            elif (usable := self._value(fields[key].type, value, here)) is not None:
                clean[key] = usable
        for each in tree.fields:
            if each.required and each.encode_name not in found:
                here, table = join(path, each.encode_name), isinstance(bare(each.type), inspect.StructType)
                hint = f"write [{here}] and its keys below it" if table else f"allowed: {allowed(each.type)}"
                self._note(here, "missing", hint)
        return clean

    def _value(self, tree: inspect.Type, found: object, path: str) -> object:
        """``found`` where it is of ``tree``'s type, or None after saying what is wrong."""
        kind = bare(tree)
        if isinstance(kind, inspect.StructType):
            return self.table(kind, found, path)
        if (table := _table(kind)) and is_table(found):
            return self.table(table, found, path)
        if isinstance(kind, inspect.DictType):
            return self._mapping(kind, found, path)
        if isinstance(kind, inspect.VarTupleType):
            return self._list(kind, found, path)
        if _fits(kind, found):
            return found
        hint = _guess(found, _choices(kind)) or _unquoted(kind, found)
        if is_table(found) and isinstance(kind, inspect.UnionType):
            hint = 'write what stands in it by its whole name, in quotes: "kv_cache_config.max_tokens" = 4096'
        self._note(path, f"found {_show(found)}; allowed: {allowed(tree)}", hint)
        return None

    def _mapping(self, tree: inspect.DictType, found: object, path: str) -> dict[str, object] | None:
        if not is_table(found):
            self._note(path, f"found {_show(found)}; allowed: a table", "write {} or { key = value, ... }")
            return None
        clean: dict[str, object] = {}
        for key, value in found.items():
            here = join(path, key)
            if not _fits(bare(tree.key_type), key):
                self._note(here, f"unknown key; allowed: {allowed(tree.key_type)}", _guess(key, _choices(tree.key_type)))
            elif (usable := self._value(tree.value_type, value, here)) is not None:
                clean[key] = usable
        return clean

    def _list(self, tree: inspect.VarTupleType, found: object, path: str) -> list[object] | None:
        if not isinstance(found, list):
            self._note(path, f"found {_show(found)}; allowed: a list of {allowed(tree.item_type)}", _as_list(tree, path))
            return None
        each = msgspec.convert(found, list[object])
        return [
            usable
            for index, item in enumerate(each)
            if (usable := self._value(tree.item_type, item, f"{path}[{index}]")) is not None
        ]

    def _note(self, path: str, what: str, hint: str = "") -> None:
        self.problems[path] = (what, hint)


def _as_list(tree: inspect.VarTupleType, path: str) -> str:
    tables = isinstance(bare(tree.item_type), inspect.StructType)
    return f"write [[{path}]] for each, and its keys below it" if tables else "write it in [ ]"


def is_table(found: object) -> TypeGuard[dict[str, object]]:
    return isinstance(found, dict)


def bare(tree: inspect.Type) -> inspect.Type:
    """The type itself, without description and without "or nothing"."""
    while True:
        if isinstance(tree, inspect.Metadata):
            tree = tree.type
        elif isinstance(tree, inspect.UnionType) and len(some := _not_none(tree)) == 1:
            tree = some[0]
        else:
            return tree


def _table(tree: inspect.Type) -> inspect.StructType | None:
    """The table that a value may be instead of something plain."""
    some = _not_none(tree) if isinstance(tree, inspect.UnionType) else ()
    return next((each for each in map(bare, some) if isinstance(each, inspect.StructType)), None)


def _not_none(tree: inspect.UnionType) -> list[inspect.Type]:
    return [each for each in tree.types if not isinstance(each, inspect.NoneType)]


def _fits(tree: inspect.Type, found: object) -> bool:
    match tree:
        case inspect.UnionType():
            some = map(bare, _not_none(tree))  # a table is walked, not compared
            return any(_fits(each, found) for each in some if not isinstance(each, inspect.StructType))
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
            raise AssertionError(f"no form has {tree}")


def _unquoted(kind: inspect.Type, found: object) -> str:
    """What to write for a number, or true or false, that stands in quotes."""
    if isinstance(found, str) and re.fullmatch(r"[A-Za-z0-9_.+-]+", found):
        with suppress(tomli.TOMLDecodeError):
            if _fits(kind, tomli.loads(f"it = {found}")["it"]):
                return f"write it without quotes: {found}"
    return ""


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
    match bare(tree):
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


def allowed(tree: inspect.Type) -> str:
    """What a key may hold, as the end of the sentence "allowed: ..."."""
    kind = bare(tree)
    match kind:
        case inspect.StructType():
            told = "a table"
        case inspect.BoolType():
            told = "true or false"
        case inspect.StrType():
            told = (kind.pattern and _described(tree)) or "text in quotes, without control characters"
        case inspect.IntType():
            told = f"a whole number{_range(kind)}"
        case inspect.FloatType():
            told = f"a number{_range(kind)}"
        case inspect.VarTupleType():
            told = f"a list of {allowed(kind.item_type)}"
        case inspect.DictType():
            told = f"a table of {allowed(kind.key_type)} -> {allowed(kind.value_type)}"
        case inspect.UnionType() if len(some := _not_none(kind)) < _SCALARS:
            told = " or ".join(filter(None, map(allowed, some)))
        case inspect.UnionType():
            told = "text without control characters, a finite number, true or false"
        case _:
            named = one_of(filter(None, _choices(kind)))  # an empty text is what nobody writes
            told = f"one of {named}" if named else ""
    return told


def _range(tree: inspect.IntType | inspect.FloatType) -> str:
    low = f"at least {tree.ge}" if tree.ge is not None else f"above {tree.gt}" if tree.gt is not None else ""
    high = f"at most {tree.le}" if tree.le is not None else ""
    told = " and ".join(part for part in (low, high) if part)
    return f", {told}" if told else ""


def one_of(names: Iterable[str]) -> str:
    return ", ".join(map(str, names))


def _meant(key: str, fields: dict[str, inspect.Field], path: str, root: inspect.Type) -> str:
    """Did you mean a sibling, or a key of another table?"""
    if guess := _guess(key, fields):
        return guess
    homes = [join(table, name) for table, name in _everywhere(root) if name == key and table != path]
    if homes:
        return f"did you mean {homes[0]!r}? a key belongs to the [table] above it"
    return f"allowed here: {one_of(fields)}"


def _everywhere(root: inspect.Type) -> Iterable[tuple[str, str]]:
    for top in root.fields if isinstance(root, inspect.StructType) else ():
        yield "", top.encode_name
        table = bare(top.type)
        if isinstance(table, inspect.StructType) and not _is_source(table):
            yield from ((top.encode_name, each.encode_name) for each in table.fields)


def _is_source(table: inspect.StructType) -> bool:
    """The keys of a source stand under several tables: naming one of them would mislead."""
    return table.cls.__name__ == "Source"


def _guess(found: object, names: Iterable[str]) -> str:
    return meant(found, names) if isinstance(found, str) else ""


def join(path: str, key: str) -> str:
    plain = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else repr(key)[:80]
    return f"{path}.{plain}" if path else plain


def _show(found: object) -> str:
    """A value as a person wrote it, with its kind, and not longer than a line bears."""
    if isinstance(found, bool):
        return str(found).lower()
    if isinstance(found, str):
        return f"text {found[:77] + '...' if len(found) > 80 else found!r}"
    if isinstance(found, float) and not math.isfinite(found):
        return f"{found}, which is no finite number"
    if isinstance(found, int | float):
        return f"the number {found if abs(found) < 10**30 else 'of many digits'}"
    if is_table(found):
        return "a table"
    return "a list" if isinstance(found, list) else f"a {type(found).__name__}"
