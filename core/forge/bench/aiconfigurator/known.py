"""What AIConfigurator 0.12's data holds: systems, the versions of each backend there, and architectures. It is read
before 0.75 GB are fetched to hear the same; `make test-offline` holds it to the package itself. Pure.
"""

import re
from functools import cache

from msgspec import Struct

from forge.errors import HostError
from forge.files import texts
from forge.schema.values import Environment, Host

SIZE = "0.75 GB"
"""Of the environment, once it is made."""
_PYTHONS = ("3.11", "3.12", "3.13")


class _Data(Struct, forbid_unknown_fields=True):
    """systems.toml: system -> backend -> versions, the oldest first; and how forge and the driver call a system's cards."""

    versions: dict[str, dict[str, tuple[str, ...]]]
    cards: dict[str, tuple[str, ...]]


@cache
def data() -> _Data:
    return texts.shipped("forge.bench.aiconfigurator", "systems.toml", _Data)


def pins() -> tuple[str, ...]:
    """AIConfigurator and all that it stands on, exactly."""
    return texts.words("forge.bench.aiconfigurator", "pins.txt")


def architectures() -> tuple[str, ...]:
    """Those that it can be asked about, as config.json has them."""
    return texts.words("forge.bench.aiconfigurator", "architectures.txt")


def version() -> str:
    return next(pin.partition("==")[2] for pin in pins() if pin.startswith("aiconfigurator=="))


def environment(host: Host) -> Environment:
    """AIConfigurator's own; HostError for a Python that it has no packages for."""
    if host.python not in _PYTHONS:
        what = f"AIConfigurator {version()} takes Python {', '.join(_PYTHONS)}, and this is {host.python}"
        raise HostError(what, where=host.interpreter, hint="run forge with one of those; tuning by measuring needs none of it")
    return Environment(host.python, host.platform, (), pins())


def system(card: str) -> str:
    """AIConfigurator's word for a card, by its own, forge's or the driver's; HostError, with those that there are."""
    plain = " ".join(re.findall(r"[a-z0-9]+", re.sub(r"\b(nvidia|tesla)\b", " ", card.lower())))
    for name in data().versions:
        if plain in (name.replace("_", " "), *data().cards.get(name, ())):
            return name
    what = f"AIConfigurator {version()} has no data of this card"
    raise HostError(
        what, where=card, hint=f"it has {', '.join(data().versions)}; `forge tune` without --offline measures on any"
    )


def nearest(have: tuple[str, ...], wanted: str) -> str:
    """That version, or the newest that is not later, or the oldest that there is."""
    if wanted in have:
        return wanted
    earlier = [each for each in have if _numbers(each) <= _numbers(wanted)]
    return earlier[-1] if earlier else have[0]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
