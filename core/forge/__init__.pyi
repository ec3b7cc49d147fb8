"""forge takes a recipe to tokens streaming out of Triton: its Python API, and all that a plugin imports."""

from forge.api.async_forge import AsyncForge, Work
from forge.api.forge import Forge
from forge.diagnoses import Diagnosis
from forge.errors import ForgeError, Problem
from forge.events import Event
from forge.hookspecs import hookimpl
from forge.schema.speculation_key import SpeculationKey
from forge.schema.values import (
    BuildOptions,
    CallPatch,
    Checkpoint,
    Command,
    ConfigOverrides,
    Engine,
    JsonPatch,
    Patch,
    Ports,
    Recipe,
    Requirements,
    Role,
    RuntimeKind,
    Scalar,
    Since,
    TextPatch,
    Tokenizer,
    Toolchain,
)

__all__ = [
    "AsyncForge",
    "BuildOptions",
    "CallPatch",
    "Checkpoint",
    "Command",
    "ConfigOverrides",
    "Diagnosis",
    "Engine",
    "Event",
    "Forge",
    "ForgeError",
    "JsonPatch",
    "Patch",
    "Ports",
    "Problem",
    "Recipe",
    "Requirements",
    "Role",
    "RuntimeKind",
    "Scalar",
    "Since",
    "SpeculationKey",
    "TextPatch",
    "Tokenizer",
    "Toolchain",
    "Work",
    "hookimpl",
]
