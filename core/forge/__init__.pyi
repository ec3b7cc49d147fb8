"""forge takes a recipe to tokens streaming out of Triton. This face is all that a plugin imports."""

from forge.diagnoses import Diagnosis
from forge.errors import ForgeError, Problem
from forge.hookspecs import hookimpl
from forge.schema.values import (
    CallPatch,
    Checkpoint,
    Command,
    ConfigOverrides,
    Engine,
    JsonPatch,
    Patch,
    Recipe,
    Requirements,
    Role,
    Scalar,
    Since,
    TextPatch,
    Tokenizer,
    Toolchain,
)

__all__ = [
    "CallPatch",
    "Checkpoint",
    "Command",
    "ConfigOverrides",
    "Diagnosis",
    "Engine",
    "ForgeError",
    "JsonPatch",
    "Patch",
    "Problem",
    "Recipe",
    "Requirements",
    "Role",
    "Scalar",
    "Since",
    "TextPatch",
    "Tokenizer",
    "Toolchain",
    "hookimpl",
]
