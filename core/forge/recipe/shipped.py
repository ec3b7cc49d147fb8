"""The recipes that forge ships, by name: data of the package where forge is installed, the folder ``recipes`` of a clone."""

import os
from functools import cache
from pathlib import Path

from forge.errors import SourceError, meant, near

_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes")
_SUFFIX = ".toml"
_BESIDE = ("", "recipes")
"""Where a recipe of this name may stand, from the folder in which forge is called."""


@cache
def folder() -> Path:
    """Where they stand."""
    return next((place for place in _PLACES if place.is_dir()), _PLACES[0])


def names() -> tuple[str, ...]:
    """Their names, in order."""
    return tuple(sorted(file.stem for file in folder().glob(f"*{_SUFFIX}")))


def text(name: str) -> str:
    """The one of this name; SourceError with all names where there is none."""
    if name not in names():
        hint = f"{meant(name, names())} forge ships {', '.join(names())}".strip()
        raise SourceError("forge ships no recipe of this name", where=name, hint=hint)
    return (folder() / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def close(name: str) -> str:
    """The shipped recipe that is nearest to a misspelt ``name``; empty where none is near."""
    return near(name, names())


def located(named: str | Path) -> str:
    """The file that is meant by ``named``: what is there; a name's recipe here, or under ``recipes`` here; or a shipped one.

    A name is a word without a folder and without ``.toml``. What is none of these comes back as it is.
    """
    text = os.fspath(named)
    if os.path.isfile(text) or os.sep in text or text.endswith(_SUFFIX) or text in ("", ".", ".."):
        return text
    beside = (os.path.join(place, f"{text}{_SUFFIX}") for place in _BESIDE)
    shipped = folder() / f"{text}{_SUFFIX}"
    return next((file for file in beside if os.path.isfile(file)), str(shipped) if shipped.is_file() else text)
