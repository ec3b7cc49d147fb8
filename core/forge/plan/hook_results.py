"""Whether a plugin's answer is what its hook promises, down to the last element."""

import types
from collections.abc import Mapping
from typing import Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Struct


def mismatch(answer: object, promised: object, at: str = "") -> str:
    """What is wrong with ``answer`` as a value of the type ``promised``, or "".

    Knows what hooks answer with: plain classes, structs, tuples of one kind, mappings, unions, literals.
    """
    origin, inner = get_origin(promised), get_args(promised)
    if origin in (Union, types.UnionType):
        return _of_union(answer, inner, at)
    if origin is Literal:
        return "" if answer in inner else _told(at, repr(answer), f"one of {', '.join(map(repr, inner))}")
    if origin is tuple:
        return _of_tuple(answer, inner[0], at)
    if origin is Mapping:
        return _of_mapping(answer, inner, at)
    return _of_class(answer, promised, at)


def _of_class(answer: object, promised: object, at: str) -> str:
    if not isinstance(promised, type):
        raise TypeError(f"hooks answer with no {promised!r}")
    # To Python a bool is an int; a reader would be surprised.
    if not isinstance(answer, promised) or (promised is int and isinstance(answer, bool)):
        return _told(at, type(answer).__name__, promised.__name__)
    return _of_fields(answer, promised, at)


def _of_union(answer: object, kinds: tuple[object, ...], at: str) -> str:
    complaints = [mismatch(answer, kind, at) for kind in kinds]
    if "" in complaints:
        return ""
    # A value of the right class with a wrong field is told by that field, not by a list of other classes.
    deep = [text for text, kind in zip(complaints, kinds, strict=True) if isinstance(kind, type) and isinstance(answer, kind)]
    return deep[0] if deep else _told(at, type(answer).__name__, " or ".join(map(_name, kinds)))


def _of_tuple(answer: object, kind: object, at: str) -> str:
    if not isinstance(answer, tuple):
        return _told(at, type(answer).__name__, f"a tuple of {_name(kind)}")
    items: tuple[object, ...] = tuple(answer)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return next((bad for index, item in enumerate(items) if (bad := mismatch(item, kind, f"{at}[{index}]"))), "")


def _of_mapping(answer: object, kinds: tuple[object, ...], at: str) -> str:
    if not isinstance(answer, Mapping):
        return _told(at, type(answer).__name__, "a mapping")
    pairs: list[tuple[object, object]] = list(answer.items())  # pyright: ignore[reportUnknownArgumentType]
    for key, value in pairs:
        if bad := mismatch(key, kinds[0], f"{at} key {key!r}") or mismatch(value, kinds[1], f"{at}[{str(key)!r}]"):
            return bad
    return ""


def _of_fields(answer: object, kind: type, at: str) -> str:
    if not issubclass(kind, Struct):
        return ""
    hints = get_type_hints(kind)
    checks = (mismatch(getattr(answer, name), hints[name], f"{at or kind.__name__}.{name}") for name in kind.__struct_fields__)
    return next((bad for bad in checks if bad), "")


def _told(at: str, found: str, wanted: str) -> str:
    return f"answered {found}, expected {wanted}" + (f" (at {at.lstrip('.')})" if at else "")


def _name(kind: object) -> str:
    return "nothing" if kind is types.NoneType else kind.__name__ if isinstance(kind, type) else str(kind)
