"""What AIConfigurator 0.12's data holds: systems, the versions of each backend there, and architectures. It is read
before 0.75 GB are fetched to hear the same; `make test-offline` holds it to the package itself. Pure.
"""

import re
from collections.abc import Mapping
from importlib.resources import files

from forge.errors import HostError
from forge.schema.values import Environment, Host

SIZE = "0.75 GB"
"""Of the environment, once it is made."""
_TRTLLM, _VLLM = ("1.3.0rc20", "1.3.0rc23"), ("0.24.0", "0.27.0")
_USUAL = {"trtllm": _TRTLLM, "vllm": _VLLM}
SYSTEMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "a100_sxm": {"trtllm": ("1.0.0",), "vllm": ("0.14.0",)},
    "b200_sxm": _USUAL,
    "b300_sxm": _USUAL,
    "b60": {"vllm": ("0.20.0", "0.26.0")},
    "gb200": _USUAL,
    "gb300": _USUAL,
    "h100_sxm": _USUAL,
    "h200_sxm": _USUAL,
    "l40s": _USUAL,
    "rtx_pro_6000_server": _USUAL,
}
"""system -> backend -> versions, the oldest first. SGLang's are left out: forge does not serve with it."""
_CARDS: Mapping[str, tuple[str, ...]] = {
    "a100_sxm": ("a100 80gb sxm", "a100 sxm4 80gb"),
    "b200_sxm": ("b200",),
    "h100_sxm": ("h100 sxm", "h100 80gb hbm3"),
    "h200_sxm": ("h200", "h200 sxm"),
    "l40s": ("l40s",),
}
"""How forge and the driver call the cards of a system."""
_PYTHONS = ("3.11", "3.12", "3.13")


def pins() -> tuple[str, ...]:
    """AIConfigurator and all that it stands on, exactly."""
    return _lines("pins.txt")


def architectures() -> tuple[str, ...]:
    """Those that it can be asked about, as config.json has them."""
    return _lines("architectures.txt")


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
    for name in SYSTEMS:
        if plain in (name.replace("_", " "), *_CARDS.get(name, ())):
            return name
    what = f"AIConfigurator {version()} has no data of this card"
    raise HostError(what, where=card, hint=f"it has {', '.join(SYSTEMS)}; `forge tune` without --offline measures on any")


def nearest(have: tuple[str, ...], wanted: str) -> str:
    """That version, or the newest that is not later, or the oldest that there is."""
    if wanted in have:
        return wanted
    earlier = [each for each in have if _numbers(each) <= _numbers(wanted)]
    return earlier[-1] if earlier else have[0]


def _lines(name: str) -> tuple[str, ...]:
    return tuple((files("forge.bench.aiconfigurator") / name).read_text(encoding="utf-8").split())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
