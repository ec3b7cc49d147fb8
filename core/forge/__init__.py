"""forge takes a recipe to tokens streaming out of Triton: its Python API, and all that a plugin imports.

The names are resolved when they are asked for: ``forge --help`` must not pay for msgspec and pluggy. ``__init__.pyi`` says the
same to type checkers, and a test holds the two together.
"""

import importlib

_MODULES = {
    "forge.api.async_forge": ("AsyncForge", "Work"),
    "forge.api.forge": ("Forge",),
    "forge.diagnoses": ("Diagnosis",),
    "forge.errors": ("ForgeError", "Problem"),
    "forge.events": ("Event",),
    "forge.hookspecs": ("hookimpl",),
    "forge.schema.speculation_key": ("SpeculationKey",),
    "forge.schema.values": (
        "BuildOptions",
        "CallPatch",
        "Checkpoint",
        "Command",
        "ConfigOverrides",
        "Engine",
        "JsonPatch",
        "Patch",
        "Ports",
        "Recipe",
        "Requirements",
        "Role",
        "RuntimeKind",
        "Scalar",
        "Since",
        "TextPatch",
        "Tokenizer",
        "Toolchain",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'forge' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
