"""Settings as a recipe's text states them, and what was measured of those that were found best. Pure."""

from collections.abc import Mapping
from typing import Any

import tomli
import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable, Item

from forge.bench.results import Figure
from forge.bench.tune.search import Tuned
from forge.bench.tune.space import NONE, VARIANT, Value, idle
from forge.errors import BenchError
from forge.recipe.validate import is_table

_MARK = "\ufeff"


def applied(text: str, settings: Mapping[str, Value]) -> str:
    """A recipe with these keys set, to be read and thrown away: its comments are gone."""
    return tomlkit.dumps(_merged(text, settings))


def stated(text: str, settings: Mapping[str, Value], note: str) -> str:
    """``text`` with these keys set where it states them, and ``note`` as a comment at its end; all else stays letter by letter.

    BenchError where that cannot be done without changing more: nothing is written then.
    """
    mark, body = (_MARK, text[1:]) if text.startswith(_MARK) else ("", text)
    try:
        document = tomlkit.parse(body)
        for key, value in settings.items():
            _set(document, key.split("."), value)
        _clear(document, settings)
        written = tomlkit.dumps(document)
        right = tomli.loads(written) == _merged(text, settings)
    except (TOMLKitError, tomli.TOMLDecodeError, ValueError, TypeError, AttributeError, LookupError):
        written, right = "", False
    if not right:
        what = "these keys cannot be put into this recipe without writing it anew"
        raise BenchError(what, hint=f"write them yourself: {_keys(settings)}")
    end = "" if written.endswith("\n") else "\n"
    return f"{mark}{written}{end}# {note}\n"


def _set(table: Any, path: list[str], value: Value) -> None:
    *folders, name = path
    for part in folders:
        if part not in table:
            table[part] = tomlkit.inline_table() if isinstance(table, InlineTable) else tomlkit.table()
        table = table[part]
    table[name] = _plain(value)


def _merged(text: str, settings: Mapping[str, Value]) -> dict[str, Any]:
    """What the recipe says with these keys, as TOML's values."""
    whole = tomli.loads(text.removeprefix(_MARK))
    for key, value in settings.items():
        *folders, name = key.split(".")
        table = whole
        for part in folders:
            inner: object = table.setdefault(part, {})
            if not is_table(inner):
                raise BenchError(f"{part} is no table of the recipe", where=f"--vary {key}")
            table = inner
        table[name] = _plain(value)
    _clear(whole, settings)
    return whole


def _clear(whole: Any, settings: Mapping[str, Value]) -> None:
    """Take away what another variant than the recipe's does not read; [draft] of one that reads no second checkpoint."""
    if (variant := settings.get(VARIANT)) is None:
        return
    if variant == NONE:
        del whole[VARIANT]
    for table in ("draft", "speculation"):
        for name in list(whole.get(table, ())):
            if idle(f"{table}.{name}", variant):
                del whole[table][name]
        if not whole.get(table, NONE):
            del whole[table]


def _toml(value: Value) -> str:
    item: Item = tomlkit.item(_plain(value))
    return item.as_string()


def _plain(value: Value) -> object:
    """With lists as TOML's libraries know them."""
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def note(tuned: Tuned, day: str) -> str:
    """The evidence in a line: what it was before, what it is, and under what."""
    chief, limits = tuned.goal, [name for name in tuned.best.figures if name != tuned.goal]
    load = ", ".join(f"{key} {value}" for key, value in tuned.best.load.items())
    kept = "".join(f", {name} {figure(tuned.best.figures[name])}" for name in limits)
    was, now = (figure(each.figures[chief]) if chief in each.figures else "-" for each in (tuned.before, tuned.best))
    return f"forge tune {day}: {_keys(tuned.best.settings)}: {chief} {was} -> {now} at {load}{kept}"


def _keys(settings: Mapping[str, Value]) -> str:
    gone = {VARIANT: "no variant"} if settings.get(VARIANT) == NONE else {}
    return ", ".join(gone.get(key, f"{key} = {_toml(value)}") for key, value in settings.items())


def figure(found: Figure) -> str:
    """A figure with its unit, as people read it."""
    if found.unit == "s":
        return f"{found.value * 1000:.3g} ms" if found.value < 1 else f"{found.value:.3g} s"
    if found.unit == "share":
        return f"{found.value:.1%}"
    return f"{found.value:.4g} {found.unit}"
