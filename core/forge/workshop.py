"""Where the Python API was up to 0.1: ``forge.Forge`` now. This name goes with the next version."""

import warnings


def __getattr__(name: str) -> object:
    from forge.api import forge

    now = "Forge" if name == "Workshop" else name
    if name.startswith("_") or not hasattr(forge, now):
        raise AttributeError(f"module 'forge.workshop' has no attribute {name!r}")
    where = "forge.Forge" if now == "Forge" else f"forge.api.forge.{now}"
    warnings.warn(f"forge.workshop.{name} is {where} now", DeprecationWarning, stacklevel=2)
    return getattr(forge, now)
