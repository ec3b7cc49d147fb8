"""Writes any recipe down as TOML, for tests that read it again."""

import json
from collections.abc import Mapping
from typing import cast

import msgspec

from forge.schema.values import Recipe


def toml(recipe: Recipe) -> str:
    """A recipe as TOML, leaving out what has its default; ``recipe.read`` of it gives the recipe back."""
    words = cast("dict[str, object]", msgspec.to_builtins(recipe))
    plain = {key: value for key, value in words.items() if not isinstance(value, dict)}
    tables = {key: cast("dict[str, object]", value) for key, value in words.items() if isinstance(value, dict)}
    lines = [f"{key} = {_value(value)}" for key, value in plain.items()]
    for table, values in tables.items():
        lines += ["", f"[{table}]", *(f"{key} = {_value(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """One TOML value; tables inside tables are written inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML's basic strings are JSON's, except that TOML forbids a bare DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value)
        return "{ " + ", ".join(f"{_value(key)} = {_value(inner)}" for key, inner in pairs.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(each) for each in cast("list[object]", value)) + "]"
    raise TypeError(f"a recipe holds no {type(value).__name__}")
