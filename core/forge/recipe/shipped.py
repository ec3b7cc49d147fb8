"""The recipes that forge ships, by name: data of the package where forge is installed, the folder ``recipes`` of a clone."""

import os
import shlex
from functools import cache
from pathlib import Path

from forge.errors import SourceError, meant, near

_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes")
_SUFFIX = ".toml"
_SHOWN = 20
"""Files of a folder that an error names."""
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


def instead(path: Path) -> str:
    """What to name where a recipe's file is wanted, and a folder is at ``path`` or nothing."""
    if os.path.isdir(path):
        files = sorted(map(str, path.glob(f"*{_SUFFIX}")))
        if not files:
            return f"no {_SUFFIX} file is in it; of a checkpoint's folder `forge new {shlex.quote(str(path))}` writes a recipe"
        return f"name a file that is in it: {', '.join(files[:_SHOWN])}{', ...' if len(files) > _SHOWN else ''}"
    near = close(path.stem)
    hint = f"did you mean {near!r}, which forge ships? " if near else ""
    return f"{hint}`forge new HUB-ID` writes a recipe, `forge new --example NAME` copies a shipped one"


def is_path(text: str) -> bool:
    """Whether it is plainly a recipe's path, and no name: whatever is there, or is not."""
    return os.sep in text or text.endswith(_SUFFIX)


def located(named: str | Path) -> str:
    """The file that is meant by ``named``: what is there; a name's recipe here, or under ``recipes`` here; or a shipped one.

    A name is a word without a folder and without ``.toml``. What is none of these comes back as it is.
    """
    text = os.fspath(named)
    if os.path.isfile(text) or is_path(text) or text in ("", ".", ".."):
        return text
    beside = (os.path.join(place, f"{text}{_SUFFIX}") for place in _BESIDE)
    shipped = folder() / f"{text}{_SUFFIX}"
    return next((file for file in beside if os.path.isfile(file)), str(shipped) if shipped.is_file() else text)
