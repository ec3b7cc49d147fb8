"""What is tried: keys of a recipe and of the load, each with its values, and every combination of them. Pure."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import tomli
from msgspec import Struct

from forge.bench.results import Value as Single
from forge.errors import BenchError
from forge.recipe.rules import DRAFTED, SPECULATIVE
from forge.schema.values import Recipe, RuntimeKind

_OPENING = ("[", '"', "'")
_LISTS = """lists are written like --vary 'sampling.stop=["."],["!","?"]'"""
LOADS = ("concurrency", "rate")
"""Of the load, and not of the recipe."""
VARIANT, NONE = "variant", "none"
"""The one key of a recipe outside of its tables that is varied, and its value where nothing guesses ahead."""
USUAL_LOADS = (1, 4, 8)
MOST = 64
"""Combinations that are begun with: each server that they need is started at least once."""
Value = Single | tuple[Single | tuple[Single, ...], ...]
"""Of a key of a recipe; a list as a tuple, so that candidates can be told apart. No key has lists of lists of lists."""
Pairs = tuple[tuple[str, Value], ...]
Axes = Mapping[str, tuple[Value, ...]]


class Candidate(Struct, frozen=True):
    """``settings`` change the recipe, key -> value, and are empty where it stays as it is; ``load`` is what it is put under."""

    settings: Pairs
    load: Pairs

    @property
    def label(self) -> str:
        words = [f"{key}={shown(value)}" for key, value in (*self.settings, *self.load)]
        return " ".join(words)


def axes(texts: Sequence[str]) -> dict[str, tuple[Value, ...]]:
    """``build.max_batch_size=4,8`` and its like, values as TOML has them; BenchError for what names none."""
    found: dict[str, tuple[Value, ...]] = {}
    for text in texts:
        key, mark, values = text.partition("=")
        key, parts = key.strip(), [part for part in _parts(values) if part]
        if not mark or not parts or not key:
            raise BenchError(f"{text!r} names no values", hint="write it like --vary build.max_batch_size=4,8")
        if "." not in key and key not in (VARIANT, *LOADS):
            hint = f"as build.max_batch_size; or {', '.join((VARIANT, *LOADS))}"
            raise BenchError(f"{key!r} is no key of a recipe's table", hint=hint)
        if key in found:
            raise BenchError(f"{key} is varied twice", hint="give all its values at once")
        found[key] = tuple(dict.fromkeys(_value(part) for part in parts))
        if key in LOADS and not all(_is_load(key, each) for each in found[key]):
            raise BenchError(f"{key} is a {'whole ' if key == 'concurrency' else ''}number above 0", where=f"--vary {text}")
    if set(LOADS) <= found.keys():
        raise BenchError("concurrency and rate exclude each other", hint="a closed loop has the one, an open loop the other")
    return found


def usual(recipe: Recipe) -> dict[str, tuple[Value, ...]]:
    """What is tried where nobody says: what decides most on each runtime, from what the recipe says upwards."""
    size = recipe.build.max_batch_size
    found: dict[str, tuple[Value, ...]] = {"build.max_batch_size": (size, 2 * size)}
    if recipe.runtime.kind is RuntimeKind.VLLM:
        found["serve.vllm.enable_prefix_caching"] = (True, False)
        found["serve.vllm.max_num_batched_tokens"] = (2048, 8192)
    elif recipe.runtime.kind is RuntimeKind.ENGINE:
        found["serve.enable_kv_cache_reuse"] = (False, True)
        found["serve.parameters.tensorrt_llm.enable_chunked_context"] = (False, True)
    elif recipe.runtime.kind is RuntimeKind.TWIN:
        many = recipe.serve.instances or size
        found["serve.instances"] = (many, 2 * many)
    return found


def candidates(given: Axes, recipe: Recipe) -> tuple[Candidate, ...]:
    """Every combination, one with the recipe as it is among them; those that share a server stand together."""
    loads = {key: values for key, values in given.items() if key in LOADS} or {"concurrency": USUAL_LOADS}
    keys = {key: values for key, values in given.items() if key not in LOADS}
    count = math.prod(map(len, (*keys.values(), *loads.values())))
    if count > MOST:
        raise BenchError(f"these are {count:,} combinations, more than {MOST}", hint="name fewer values with --vary")
    stated = {key: _frozen(at(recipe, key)) for key in keys} | {VARIANT: recipe.variant or NONE}
    settings = [_changes(dict(zip(keys, chosen, strict=True)), stated) for chosen in itertools.product(*keys.values())]
    whole = dict.fromkeys([(), *settings])
    under = [tuple(zip(loads, chosen, strict=True)) for chosen in itertools.product(*loads.values())]
    return tuple(Candidate(each, load) for each in whole for load in under)


def _changes(chosen: Mapping[str, Value], stated: Mapping[str, object]) -> Pairs:
    """What of ``chosen`` changes the recipe; where variants are tried, without what this one does not read."""
    read = (key for key in chosen if VARIANT not in chosen or not idle(key, chosen[VARIANT]))
    return tuple((key, chosen[key]) for key in read if chosen[key] != stated[key])


def idle(key: str, variant: Value) -> bool:
    """Whether ``variant`` reads no such key of [draft] or [speculation]. Of one that forge does not ship that is not known."""
    table, _, name = key.partition(".")
    ours = variant == NONE or variant in SPECULATIVE
    read = SPECULATIVE.get(str(variant), ())
    return ours and ((table == "draft" and variant not in DRAFTED) or (table == "speculation" and name not in read))


def at(recipe: Recipe, key: str) -> object:
    """What the recipe says there; None where it says nothing."""
    found: object = recipe
    for part in key.split("."):
        if isinstance(found, Mapping):
            found = dict(cast("Mapping[str, object]", found)).get(part)  # a role is a text too
        else:
            found = cast("object", getattr(found, part, None))
    return _frozen(found)


def shown(value: Value) -> str:
    """As TOML writes it, without quotes."""
    if isinstance(value, tuple):
        return f"[{','.join(map(shown, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_load(key: str, value: Value) -> bool:
    kinds = int if key == "concurrency" else int | float
    return isinstance(value, kinds) and not isinstance(value, bool) and value > 0


def _parts(text: str) -> Iterator[str]:
    """``text`` cut at its commas, but for those of a list or of a text in quotes; BenchError where one of them has no end."""
    pieces = iter(text.split(","))
    for piece in pieces:
        part = piece.strip()
        while part.startswith(_OPENING) and _read(part) is None:
            more = next(pieces, None)
            if more is None:
                raise BenchError(f"{part!r} is no value of TOML", hint=_LISTS)
            part = f"{part},{more}".strip()
        yield part


def _value(text: str) -> Value:
    found = _frozen(_read(text))
    return cast("Value", found) if isinstance(found, str | int | float | bool | tuple) else text


def _read(text: str) -> object:
    """What TOML reads in it; None where that is nothing."""
    try:
        return tomli.loads(f"it = {text}")["it"]
    except tomli.TOMLDecodeError:
        return None


def _frozen(value: object) -> object:
    """Lists as tuples, however deep."""
    return tuple(map(_frozen, cast("Sequence[object]", value))) if isinstance(value, list | tuple) else value
