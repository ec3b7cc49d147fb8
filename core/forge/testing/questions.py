"""What the kit asks a plugin: every quantization, several GPUs, images old and new; and what each hook has to answer with."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import cast

import msgspec
from msgspec.structs import replace

from forge.diagnoses import Diagnosis
from forge.errors import ForgeError, Problem
from forge.plan.families import load
from forge.plan.plugin import REQUIRED as COMMANDS, Plugin, Question
from forge.schema.recipe import QUANTIZED, WEIGHT_ONLY
from forge.schema.speculation_key import SpeculationKey
from forge.schema.values import (
    Checkpoint,
    Command,
    ConfigOverrides,
    Engine,
    Patch,
    Recipe,
    Requirements,
    ServeTable,
    Since,
    Tokenizer,
)
from forge.trtllm import commands, image_table

PROMISES: dict[str, object] = {
    "forge_architectures": tuple[str, ...],
    "forge_check": tuple[Problem, ...],
    "forge_requirements": Requirements,
    "forge_patches": tuple[Patch, ...],
    "forge_convert_commands": tuple[Command, ...],
    "forge_build_commands": tuple[Command, ...],
    "forge_engines": tuple[Engine, ...],
    "forge_tokenizer": Tokenizer,
    "forge_config_overrides": ConfigOverrides,
    "forge_diagnoses": tuple[Diagnosis, ...],
    "forge_since": tuple[Since, ...],
    "forge_speculation": tuple[SpeculationKey, ...],
    "forge_lora_modules": Mapping[str, str],
}
"""What each hook answers with."""

_IMAGES = ("25.01", "25.08", "26.07")
"""Old layout, today's, and the last image that is known to hold the engine path."""


@dataclass(frozen=True)
class Case:
    """One question that a plugin is asked, with a name for messages."""

    name: str
    question: Question


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a hook's answer; in which case, where it is not so in all.

    ``where`` is the line that is at fault, where it is not the one that the hook begins with.
    """

    hook: str
    what: str
    case: str = ""
    where: str = ""
    hint: str = ""


def told(plugin: Plugin, faults: Iterable[Fault]) -> tuple[Problem, ...]:
    """Each fault once, however many cases show it, with the line of the hook that it is about."""
    seen: dict[tuple[str, str], list[Fault]] = {}
    for each in faults:
        seen.setdefault((each.hook, each.what), []).append(each)
    return tuple(_problem(plugin, alike) for alike in seen.values())


def _problem(plugin: Plugin, alike: list[Fault]) -> Problem:
    first = alike[0]
    cases = list(dict.fromkeys(each.case for each in alike))
    more = f", and in {len(cases) - 1} more cases" if len(cases) > 1 else ""
    what = f"{first.case}{more}: {first.what}" if first.case else first.what
    return Problem(first.where or plugin.line(first.hook).where or plugin.name, what, first.hint)


def cases(plugin: Plugin, recipe: Recipe) -> tuple[Case, ...]:
    """What a plugin is asked: every quantization, several GPUs, images old and new, and a checkpoint not yet seen."""
    shape = {"num_attention_heads": 8, "num_hidden_layers": 8, "max_position_embeddings": 8192, "hidden_size": 64}
    seen = [Checkpoint({"architectures": [name], **shape}) for name in plugin.architectures or ("LlamaForCausalLM",)]
    tools = image_table.toolchain("25.08")
    narrowed = [_with(recipe, quantization=form) for form in ("none", *WEIGHT_ONLY, *QUANTIZED)]
    reuse = msgspec.structs.replace(recipe, serve=ServeTable(enable_kv_cache_reuse=True))
    return (
        *(Case(f"for {', '.join(each.architectures)}", Question(recipe, each, tools)) for each in seen),
        *(Case(f"with image {tag}", Question(recipe, seen[0], image_table.toolchain(tag))) for tag in _IMAGES),
        *(Case(f"with quantization {each.convert.quantization}", Question(each, seen[0], tools)) for each in narrowed),
        Case("on two GPUs", Question(_with(recipe, tp=2), seen[0], tools)),
        Case("with cache reuse", Question(reuse, seen[0], tools)),
        Case("with a draft", Question(recipe, seen[0], tools, draft=seen[0])),
        Case("before the checkpoint was fetched", Question(recipe, Checkpoint(), tools)),
    )


def _with(recipe: Recipe, **convert: str | int) -> Recipe:
    return msgspec.structs.replace(recipe, convert=msgspec.structs.replace(recipe.convert, **convert))


def loaded(plugin: ModuleType | str) -> Plugin:
    return load(plugin) if isinstance(plugin, str) else Plugin(plugin.__name__, plugin)


def put(plugin: Plugin, hook: str, case: Case) -> Question:
    """The case's question; a variant is told besides what a family such as llama answers to it.

    It is a copy: a plugin that changes what it is given must not spoil the next check.
    """
    question = copy.deepcopy(case.question)
    recipe, toolchain = question.recipe, question.toolchain
    if plugin.architectures is not None or hook not in COMMANDS or recipe is None or toolchain is None:
        return question
    converts = hook == COMMANDS[0]
    return replace(question, base=commands.convert(recipe, toolchain, "llama") if converts else commands.build(recipe))


def demanded(plugin: Plugin, hook: str, case: Case) -> object:
    """The answer to one question; raises what the plugin raises, or PluginError where the answer is of another type."""
    return plugin.ask(hook, PROMISES[hook], put(plugin, hook, case))


def answer(plugin: Plugin, hook: str, case: Case) -> object:
    """The same, and None where there is no answer: that a hook raises is one fault, and told by one check."""
    try:
        return demanded(plugin, hook, case) if hook in plugin.hooks() else None
    except ForgeError:
        return None


def commanded(plugin: Plugin, asked: tuple[Case, ...]) -> Iterator[tuple[str, str, Command]]:
    """Every command that it answers with, after the hook and the case."""
    for hook in COMMANDS:
        for case in asked:
            for command in cast("tuple[Command, ...] | None", answer(plugin, hook, case)) or ():
                yield hook, case.name, command
