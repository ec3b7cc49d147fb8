"""Settings as a recipe's text states them, and what was measured beside each of them that was found best. Pure."""

from collections.abc import Mapping
from typing import Any, cast

import tomlkit
from tomlkit.items import Item

from forge.bench.results import Figure, Value
from forge.bench.tune.search import Trial, Tuned


def stated(text: str, settings: Mapping[str, Value], note: str = "") -> str:
    """``text`` with these keys set, and ``note`` as a comment behind each; all else stays letter by letter."""
    document = tomlkit.parse(text)
    for key, value in settings.items():
        *path, name = key.split(".")
        table: Any = document
        for part in path:
            if part not in table:
                table[part] = tomlkit.table()
            table = table[part]
        table[name] = value
        if note:
            cast("Item", table.item(name) if hasattr(table, "item") else table[name]).comment(note)
    return tomlkit.dumps(document)


def note(tuned: Tuned, day: str) -> str:
    """The evidence in a line: what it was before, what it is, and under what."""
    chief, limits = tuned.goal, [name for name in tuned.best.figures if name != tuned.goal]
    load = ", ".join(f"{key} {value}" for key, value in tuned.best.load.items())
    kept = "".join(f", {name} {figure(tuned.best.figures[name])}" for name in limits)
    was, now = (figure(each.figures[chief]) if chief in each.figures else "-" for each in (tuned.before, tuned.best))
    return f"forge tune {day}: {chief} {was} -> {now} at {load}{kept}"


def figure(found: Figure) -> str:
    """A figure with its unit, as people read it."""
    if found.unit == "s":
        return f"{found.value * 1000:.3g} ms" if found.value < 1 else f"{found.value:.3g} s"
    if found.unit == "share":
        return f"{found.value:.1%}"
    return f"{found.value:.4g} {found.unit}"


def only(trial: Trial, names: tuple[str, ...]) -> dict[str, Figure]:
    """Those figures of a trial that a goal looks at."""
    return {name: trial.figures[name] for name in names if name in trial.figures}
