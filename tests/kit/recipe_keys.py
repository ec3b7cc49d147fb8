"""Every key that a recipe may have, for tests of the pages that name them."""

from collections.abc import Iterable

import msgspec
from msgspec import Struct, inspect

from forge.recipe.validate import allowed, bare, join
from forge.schema.values import Recipe, Source


class Key(Struct, frozen=True):
    """One key that a recipe may have: its path, what is allowed there, and its default as TOML ("" where there is none)."""

    path: str
    allowed: str
    default: str


def keys() -> tuple[Key, ...]:
    """Every key of a recipe, as docs/recipe.md lists them; what is a source like ``[source]`` is told by its own keys only."""
    return tuple(_keys(inspect.type_info(Recipe), ""))


def _keys(tree: inspect.Type, path: str) -> Iterable[Key]:
    for each in tree.fields if isinstance(tree, inspect.StructType) else ():
        here = join(path, each.encode_name)
        kind = bare(each.type)
        if isinstance(kind, inspect.StructType) and here != "source" and issubclass(kind.cls, Source):
            yield Key(here, "a table with the keys of [source]", "")
            shared = {join(here, key) for key in Source.__struct_fields__}
            yield from (key for key in _keys(kind, here) if key.path not in shared)
        elif isinstance(kind, inspect.StructType):
            yield from _keys(kind, here)
        elif isinstance(kind, inspect.VarTupleType) and isinstance(one := bare(kind.item_type), inspect.StructType):
            yield Key(here, f"tables [[{here}]], with the keys of [source]", "")
            yield from (key for key in _keys(one, here) if key.path.removeprefix(f"{here}.") not in Source.__struct_fields__)
        else:
            yield Key(here, allowed(each.type), _default(each))


def _default(each: inspect.Field) -> str:
    if each.default_factory is dict:
        return "{}"
    plain = each.default is not msgspec.NODEFAULT and each.default is not None
    return msgspec.json.encode(each.default).decode() if plain else ""
