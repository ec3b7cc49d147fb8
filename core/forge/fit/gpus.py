"""GPUs: those that are here, and common ones by name, for judging whether a model fits one that is not here."""

import re
from functools import cache

from msgspec import Struct

from forge.errors import HostError, near as nearest
from forge.files import texts
from forge.schema.values import MIB, Gpu


class _Row(Struct):
    """One card as gpus.toml has it; ``memory`` in MiB."""

    name: str
    memory: int
    capability: str


class _Table(Struct):
    gpu: tuple[_Row, ...]


@cache
def table() -> tuple[Gpu, ...]:
    """Every card that can be named (gpus.toml, which says where its figures are from)."""
    return tuple(Gpu(row.name, row.memory * MIB, row.capability) for row in texts.shipped("forge.fit", "gpus.toml", _Table).gpu)


def find(name: str) -> Gpu:
    """The card of that name, by the table's words or nvidia-smi's; HostError names the nearest where there is none."""
    wanted = _words(name)
    same = [gpu for gpu in table() if _words(gpu.name) == wanted]
    near = same or [gpu for gpu in table() if set(wanted) <= set(_words(gpu.name))]
    if near:
        return min(near, key=lambda gpu: gpu.memory)
    plain = {" ".join(_words(gpu.name)): gpu.name for gpu in table()}
    close = plain.get(nearest(" ".join(wanted), plain), "")
    hint = f"did you mean {close!r}? " if close else ""
    raise HostError("forge knows no such GPU", where=name, hint=f"{hint}known: {', '.join(gpu.name for gpu in table())}")


def known(name: str) -> Gpu | None:
    """The table's card for a name as the driver says it (``NVIDIA GeForce RTX 4090``); None where there is none."""
    try:
        return find(name)
    except HostError:
        return None


def clash(some: frozenset[str], others: frozenset[str]) -> bool:
    """Whether two steps want a GPU both. One that takes all wants each; a number and an id may mean the same."""
    if not some or not others:
        return False
    numbers = {name.isdigit() for name in some | others}
    return "all" in some | others or len(numbers) > 1 or not some.isdisjoint(others)


def _words(name: str) -> tuple[str, ...]:
    """A name's words as they count: lower case, without maker and brand, ``RTX4090`` and ``80 GB`` taken apart or joined."""
    text = re.sub(r"\b(nvidia|geforce|tesla|quadro|generation|laptop gpu|gpu|hbm3e?)\b", " ", name.lower())
    text = re.sub(r"(\d+)\s*gi?b\b", r"\1gb", text)
    text = re.sub(r"\brtx(?=\d)", "rtx ", text)
    return tuple(re.findall(r"[a-z0-9]+", text))
