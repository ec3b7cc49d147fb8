"""Files that people and other programs write, read whole, whatever stands in their place. Every reader of one asks here.

A pipe is not waited for, a folder or a device is no file, and what is too large is not begun. Each is an error of the reader's
own family, with the path and what to do.
"""

import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar, cast

import msgspec

from forge.errors import ForgeError

MOST = 256 << 20
"""Bytes of the largest file that is read whole: a tokenizer.json has tens of millions."""
BROKEN = (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError)
"""What a decoder raises for a text that is not what it ought to be, nested too deep among others."""
_HINT = "name an ordinary file that you may read, or fix this one"
_KINDS: Mapping[int, str] = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
T = TypeVar("T")


class Family(Protocol):
    """A family of forge's errors."""

    def __call__(self, what: str, *, where: str, hint: str) -> ForgeError: ...


class Odd(Exception):  # noqa: N818  # whoever asks makes an error of its own family of it
    """Nothing that can be read stands there, and why."""


class Missing(Odd):
    """Nothing stands there at all."""


def no_folder(path: Path) -> str:
    """What stands where a folder is wanted, in the words of an error; empty for a folder, and for a name that is free."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(error.strerror)
    return "" if stat.S_ISDIR(status.st_mode) else f"{_kind(status)} stands there, not a folder"


def _kind(status: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(status.st_mode), "something else")


def part(package: str, name: str) -> str:
    """A text of forge's own, which lies in ``package``."""
    from importlib import resources

    return (resources.files(package) / name).read_text(encoding="utf-8")


def words(package: str, name: str) -> tuple[str, ...]:
    """Its words, which no blank is in."""
    return tuple(part(package, name).split())


def code(package: str) -> dict[str, str]:
    """Every Python file that lies in ``package``, by name."""
    from importlib import resources

    names = sorted(each.name for each in resources.files(package).iterdir() if each.name.endswith(".py"))
    return {name: part(package, name) for name in names}


def shipped(package: str, name: str, kind: type[T]) -> T:
    """A table of forge's own, which lies in ``package`` as TOML."""
    return msgspec.toml.decode(part(package, name), type=kind)


def content(file: Path, most: int = MOST) -> bytes:
    """All that ``file`` holds, at most ``most`` bytes; Odd where it cannot be read."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe that nobody writes to is opened at once
    except (FileNotFoundError, NotADirectoryError):
        raise Missing("there is no such file") from None
    except OSError as error:
        raise Odd(str(error.strerror)) from error
    except ValueError as error:  # a NUL in its name
        raise Odd(str(error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Odd(f"{_kind(status)} stands there, not a file")
        if status.st_size > most:
            raise Odd(f"it has {status.st_size:,} bytes, more than the {most:,} that are read")
        with open(descriptor, "rb", closefd=False) as opened:
            return opened.read(most)
    except OSError as error:
        raise Odd(str(error.strerror)) from error
    finally:
        os.close(descriptor)


def read(file: Path, family: Family, called: str = "this file", *, hint: str = _HINT, most: int = MOST) -> str:
    """The text in ``file``; an error of ``family`` where there is none. ``called`` is what it is to a person."""
    try:
        return content(file, most).decode()
    except Odd as odd:
        raise family(f"{called} cannot be read: {odd}", where=str(file), hint=hint) from odd
    except UnicodeDecodeError as error:
        raise family(f"{called} cannot be read: it is not UTF-8 text ({error})", where=str(file), hint=hint) from error


def there(file: Path, family: Family, called: str = "this file", *, hint: str = _HINT) -> str | None:
    """The same; None where nothing stands there."""
    return read(file, family, called, hint=hint) if os.path.lexists(file) else None


def table(file: Path, family: Family, called: str = "this file", *, hint: str = _HINT) -> dict[str, object]:
    """The JSON object in ``file``, empty where nothing stands there; an error of ``family`` where it is none."""
    text = there(file, family, called, hint=hint)
    if text is None:
        return {}
    return parsed(lambda: _object(text), family, called, str(file), hint=hint)


def parsed(make: Callable[[], T], family: Family, called: str, where: str, *, hint: str = _HINT) -> T:
    """What ``make`` makes of a text; an error of ``family`` where it is not what it ought to be."""
    try:
        return make()
    except BROKEN as error:
        why = "its values are nested too deep" if isinstance(error, RecursionError) else str(error)
        raise family(f"{called} cannot be read: {why}", where=where, hint=hint) from error


def document(file: Path) -> tuple[Mapping[str, object], str]:
    """The JSON object in ``file``, and why it cannot be read; both empty where there is no such file."""
    try:
        return _object(content(file).decode()), ""
    except Missing:
        return {}, ""
    except Odd as odd:
        return {}, str(odd)
    except RecursionError:
        return {}, "its values are nested too deep"
    except ValueError as error:
        return {}, f"it is not JSON: {error}"


def _object(text: str) -> dict[str, object]:
    found: object = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")  # noqa: TRY004  # of the text, as json's own
    return cast("dict[str, object]", found)
