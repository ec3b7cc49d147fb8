"""The contract between forge and its plugins, API 6. Every hook takes values and returns a value; none runs anything.

A plugin is a module installed under the entry-point group ``forge``; the entry point's name is the family or variant that a
recipe asks for. A hook names whichever of its arguments it wants. ``None`` leaves the question to the plugin below: a variant
stands over a family. Each hook is described in docs/hooks.md.

API 2 added ``forge_engines``, ``draft`` and ``toolchain`` in ``forge_check``, and ``base`` in the two hooks that answer
commands. API 3 added ``forge_diagnoses``, API 4 ``forge_since``, API 5 ``forge_speculation``, API 6
``forge_lora_modules``. A plugin that was written for an
earlier API works as it did.
"""

from collections.abc import Mapping

import pluggy

from forge.diagnoses import Diagnosis
from forge.errors import Problem
from forge.schema.speculation_key import SpeculationKey
from forge.schema.values import (
    Checkpoint,
    Command,
    ConfigOverrides,
    Engine,
    Patch,
    Recipe,
    Requirements,
    Since,
    Tokenizer,
    Toolchain,
)

PROJECT = "forge"
API = 6
SINCE: Mapping[str, int] = {
    "forge_engines": 2,
    "forge_check.draft": 2,
    "forge_check.toolchain": 2,
    "forge_convert_commands.base": 2,
    "forge_build_commands.base": 2,
    "forge_diagnoses": 3,
    "forge_since": 4,
    "forge_speculation": 5,
    "forge_lora_modules": 6,
}
"""Hooks, and arguments of hooks, that were not there from the beginning -> the API that brought them."""
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def forge_architectures() -> tuple[str, ...] | None:
    """The ``architectures`` of config.json that this family serves. A variant answers None. Since API 1."""


@hookspec(firstresult=True)
def forge_check(recipe: Recipe, checkpoint: Checkpoint, draft: Checkpoint, toolchain: Toolchain) -> tuple[Problem, ...] | None:
    """What this recipe asks that cannot work, each with what to change. Answers of all plugins are collected. Since API 1."""


@hookspec(firstresult=True)
def forge_requirements(recipe: Recipe, checkpoint: Checkpoint, toolchain: Toolchain) -> Requirements | None:
    """Packages that the family image needs on top of NVIDIA's. Joined, the family's first. Since API 1."""


@hookspec(firstresult=True)
def forge_patches(recipe: Recipe, checkpoint: Checkpoint, toolchain: Toolchain) -> tuple[Patch, ...] | None:
    """Edits to toolchain scripts or checkpoint JSON, as data. Joined, the family's first. Since API 1."""


@hookspec(firstresult=True)
def forge_convert_commands(
    recipe: Recipe, checkpoint: Checkpoint, toolchain: Toolchain, base: tuple[Command, ...]
) -> tuple[Command, ...] | None:
    """Commands that turn /forge/model into TensorRT-LLM's checkpoint in /forge/out. First answer wins. Since API 1."""


@hookspec(firstresult=True)
def forge_build_commands(
    recipe: Recipe, checkpoint: Checkpoint, toolchain: Toolchain, base: tuple[Command, ...]
) -> tuple[Command, ...] | None:
    """Commands that turn /forge/checkpoint into engines in /forge/out. First answer wins. Since API 1."""


@hookspec(firstresult=True)
def forge_engines(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Engine, ...] | None:
    """The engines that the build makes, where it is not one in /forge/out itself. First answer wins. Since API 2."""


@hookspec(firstresult=True)
def forge_tokenizer(recipe: Recipe, checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer's kind, files and special-token settings. First answer wins. Since API 1."""


@hookspec(firstresult=True)
def forge_config_overrides(recipe: Recipe, checkpoint: Checkpoint) -> ConfigOverrides | None:
    """config.pbtxt parameters by role. Merged: variant over family, the recipe over both. Since API 1."""


@hookspec(firstresult=True)
def forge_diagnoses() -> tuple[Diagnosis, ...] | None:
    """Failures of the plugin's commands that are known by their words, each with its fix. All are asked. Since API 3."""


@hookspec(firstresult=True)
def forge_since() -> tuple[Since, ...] | None:
    """The first TensorRT-LLM that has each architecture, where not every image has it. Joined. Since API 4."""


@hookspec(firstresult=True)
def forge_speculation() -> tuple[SpeculationKey, ...] | None:
    """The keys of [speculation] that a variant reads; all others are refused. The variant's alone. Since API 5."""


@hookspec(firstresult=True)
def forge_lora_modules(checkpoint: Checkpoint) -> Mapping[str, str] | None:
    """Modules that LoRA adapters may change: the checkpoint's name -> TensorRT-LLM's. The family's alone. Since API 6."""
