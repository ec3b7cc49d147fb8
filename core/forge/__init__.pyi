"""forge takes a recipe to tokens streaming out of Triton. This face is all that a plugin imports."""

from forge.errors import ForgeError, Problem
from forge.hookspecs import hookimpl
from forge.model import (
    CallPatch,
    Checkpoint,
    Command,
    ConfigOverrides,
    JsonPatch,
    Patch,
    Recipe,
    Requirements,
    Role,
    TextPatch,
    Tokenizer,
    Toolchain,
)

__all__ = [
    "CallPatch",
    "Checkpoint",
    "Command",
    "ConfigOverrides",
    "ForgeError",
    "JsonPatch",
    "Patch",
    "Problem",
    "Recipe",
    "Requirements",
    "Role",
    "TextPatch",
    "Tokenizer",
    "Toolchain",
    "hookimpl",
]
