"""Which line of a plugin is at fault: its own deepest one in a traceback, or where its hook begins. Only reads source."""

import linecache
import traceback
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType

from msgspec import Struct


class Line(Struct, frozen=True):
    """One line of a plugin's source; ``text`` is empty where it cannot be read, ``file`` where nobody knows it."""

    file: str = ""
    number: int = 0
    text: str = ""

    @property
    def where(self) -> str:
        """As editors and terminals take it: ``/home/me/forge_mine/__init__.py:17``."""
        return f"{self.file}:{self.number}" if self.file else ""

    @property
    def source(self) -> str:
        """The line, after its number."""
        return f"{self.number} | {self.text}" if self.text else ""

    def __bool__(self) -> bool:
        return bool(self.file)


NOWHERE = Line()


def folders(module: object) -> tuple[str, ...]:
    """What a plugin consists of: the folders of its package, or its file; and the files that its hooks are written in."""
    package = sorted(map(str, getattr(module, "__path__", ()))) if isinstance(module, ModuleType) else []
    file = getattr(module, "__file__", None)
    hooks = [thing.__code__.co_filename for thing in vars(module).values() if isinstance(thing, FunctionType)]
    return tuple(dict.fromkeys((*package, *([file] if isinstance(file, str) else []), *hooks)))


def found(module: str) -> tuple[str, ...]:
    """The same for a top-level module that is not imported; nothing where there is none."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    return (*map(str, spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else ()))


def raised(error: BaseException, own: Iterable[str]) -> Line:
    """The plugin's own line that an exception came through last; ``own`` are its files and folders."""
    places = tuple(own)
    if isinstance(error, SyntaxError) and error.filename and _within(error.filename, places):
        return Line(error.filename, error.lineno or 0, (error.text or "").rstrip())
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _within(frame.filename, places):
            return _line(frame.filename, frame.lineno or 0)
    return NOWHERE


def implementation(hook: object) -> Line:
    """The ``def`` line of a hook's function, below its decorators."""
    if not isinstance(hook, FunctionType):
        return NOWHERE
    file, first = hook.__code__.co_filename, hook.__code__.co_firstlineno
    lines = linecache.getlines(file)
    named = (at for at in range(first, len(lines) + 1) if lines[at - 1].lstrip().startswith(("def ", "async def ")))
    return _line(file, next(named, first))


def containing(file: object, word: str) -> Line:
    """The first line of a file that begins with a word."""
    if not isinstance(file, str):
        return NOWHERE
    found = (at for at, text in enumerate(linecache.getlines(file), 1) if text.startswith(word))
    return next((_line(file, at) for at in found), Line(file, 1))


def _line(file: str, number: int) -> Line:
    return Line(file, number, linecache.getline(file, number).rstrip())


def _within(file: str, places: Iterable[str]) -> bool:
    return any(file == place or Path(place) in Path(file).parents for place in places)
