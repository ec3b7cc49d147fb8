"""Where the Python API was up to 0.1; it is ``forge.api.forge`` now, and this name goes with the next version."""

import warnings


def __getattr__(name: str) -> object:
    from forge.api import forge

    if name.startswith("_") or not hasattr(forge, name):
        raise AttributeError(f"module 'forge.workshop' has no attribute {name!r}")
    warnings.warn(f"forge.workshop.{name} is forge.api.forge.{name} now", DeprecationWarning, stacklevel=2)
    return getattr(forge, name)
