"""The sha256 of the wheels that forge's own pins stand for: ``wheels.sha256``, written by ``.ci/wheel_hashes.py``. Pure."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

FILE = "wheels.sha256"
Hashes = Mapping[str, tuple[str, ...]]
"""``name==version`` -> the sha256 of each wheel that is taken for it."""
NO_HASHES: Hashes = MappingProxyType({})


def pinned(requirement: str) -> str:
    """``name==version`` with the name as indexes compare it; empty where the requirement is no exact pin of a name."""
    found = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._+!]+)", requirement)
    return f"{re.sub(r'[-_.]+', '-', found[1]).lower()}=={found[2]}" if found else ""


@cache
def shipped() -> Hashes:
    lines = (files("forge.schema") / FILE).read_text(encoding="utf-8").splitlines()
    return {pin: tuple(digests) for pin, *digests in map(str.split, lines)}


def known(requirements: Iterable[str], hashes: Hashes) -> Hashes:
    """What ``hashes`` or forge itself knows of those of ``requirements`` that are exact pins, under their own words."""
    found = ((each, hashes.get(pinned(each)) or shipped().get(pinned(each), ())) for each in requirements)
    return {each: digests for each, digests in found if digests}


def listed(held: Hashes) -> str:
    """The same as a requirements file."""
    return "".join(" ".join((pin, *(f"--hash=sha256:{digest}" for digest in digests))) + "\n" for pin, digests in held.items())
