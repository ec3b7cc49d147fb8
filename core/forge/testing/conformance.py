"""The checks that every plugin has to pass, forge's own and a stranger's alike. Reached through ``forge.testing``.

A plugin's author writes one class, and pytest runs every check of it::

    class TestMine(forge.testing.PluginConformance):
        plugin = forge_mine
"""

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from types import ModuleType
from typing import cast

import msgspec

from forge import hookspecs
from forge.diagnoses import DIAGNOSES, Diagnosis, fault
from forge.errors import ForgeError, PluginError, Problem
from forge.plan.families import Plugin, Question, load
from forge.schema.recipe import QUANTIZED, WEIGHT_ONLY
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
    ServeTable,
    Since,
    Source,
    TextPatch,
    Tokenizer,
)
from forge.trtllm import commands, images, patches

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
}
"""What each hook answers with."""

_COMMANDS = ("forge_convert_commands", "forge_build_commands")
_IMAGES = ("25.01", "25.08", "26.07")
"""Old layout, today's, and the last image that is known to hold the engine path."""
_FLAG = re.compile(r"--?[A-Za-z][A-Za-z0-9_-]*(=.*)?")
_NUMBER = re.compile(r"-\d+(\.\d+)?([eE][+-]?\d+)?")
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "env", "sudo", "eval"})
_PROBE = "forge-probe"
_OURS = ("/forge/", "/app/", "/opt/tritonserver/")
"""Where a command's paths may point: forge's constants, and what NVIDIA's image brings."""


@dataclass(frozen=True)
class Case:
    """One question that a plugin is asked, with a name for messages."""

    name: str
    question: Question


class PluginConformance:
    """Derive from it, name the plugin, and pytest runs the checks. ``recipe`` is one that suits the plugin."""

    plugin: ModuleType | str
    recipe: Recipe = Recipe(name="conformance", source=Source(hub="owner/model"))

    def test_hooks_are_spelled_right(self) -> None:
        _expect(_misspelled(self.plugin, self._plugin()))

    def test_a_family_names_its_architectures(self) -> None:
        _expect(_architectures(self._plugin()))

    def test_a_family_answers_how_to_convert_and_build(self) -> None:
        _expect(_whole(self._plugin()))

    def test_answers_have_the_promised_types(self) -> None:
        _expect(_typed(self._plugin(), self._cases()))

    def test_the_same_question_has_the_same_answer(self) -> None:
        _expect(_pure(self._plugin(), self._cases()))

    def test_commands_name_constant_paths_only(self) -> None:
        _expect(_paths(self._plugin(), self._cases()))

    def test_commands_are_well_formed(self) -> None:
        _expect(_well_formed(self._plugin(), self._cases()))

    def test_the_recipes_own_flags_reach_the_command(self) -> None:
        _expect(_own_flags(self._plugin(), self._cases()))

    def test_engines_stand_where_the_build_leaves_them(self) -> None:
        _expect(_engines(self._plugin(), self._cases()))

    def test_patches_can_be_applied_again(self) -> None:
        _expect(_patches(self._plugin(), self._cases()))

    def test_diagnoses_can_be_used(self) -> None:
        _expect(_diagnoses(self._plugin(), self._cases()))

    def _plugin(self) -> Plugin:
        return _loaded(self.plugin)

    def _cases(self) -> tuple[Case, ...]:
        return cases(self._plugin(), self.recipe)


def check_plugin(plugin: ModuleType | str, recipe: Recipe = PluginConformance.recipe) -> tuple[Problem, ...]:
    """Everything that is wrong with a plugin: a module, or the name of an installed one. Empty for a good one."""
    try:
        loaded = _loaded(plugin)
        asked = cases(loaded, recipe)
        typed = tuple(_typed(loaded, asked))
    except ForgeError as error:
        return (Problem(str(plugin), error.what, error.hint),)
    found = (*_misspelled(plugin, loaded), *_architectures(loaded), *_whole(loaded), *typed)
    if not typed:  # a wrong type would only be told again by each of these
        for check in (_pure, _paths, _well_formed, _own_flags, _engines, _patches, _diagnoses):
            found += tuple(check(loaded, asked))
    return tuple(Problem(loaded.name, what) for what in found)


def cases(plugin: Plugin, recipe: Recipe) -> tuple[Case, ...]:
    """What a plugin is asked: every quantization, several GPUs, images old and new, and a checkpoint not yet seen."""
    shape = {"num_attention_heads": 8, "num_hidden_layers": 8, "max_position_embeddings": 8192, "hidden_size": 64}
    seen = [Checkpoint({"architectures": [name], **shape}) for name in plugin.architectures or ("LlamaForCausalLM",)]
    tools = images.toolchain("25.08")
    narrowed = [_with(recipe, quantization=form) for form in ("none", *WEIGHT_ONLY, *QUANTIZED)]
    reuse = msgspec.structs.replace(recipe, serve=ServeTable(enable_kv_cache_reuse=True))
    return (
        *(Case(f"for {', '.join(each.architectures)}", Question(recipe, each, tools)) for each in seen),
        *(Case(f"with image {tag}", Question(recipe, seen[0], images.toolchain(tag))) for tag in _IMAGES),
        *(Case(f"with quantization {each.convert.quantization}", Question(each, seen[0], tools)) for each in narrowed),
        Case("on two GPUs", Question(_with(recipe, tp=2), seen[0], tools)),
        Case("with cache reuse", Question(reuse, seen[0], tools)),
        Case("with a draft", Question(recipe, seen[0], tools, draft=seen[0])),
        Case("before the checkpoint was fetched", Question(recipe, Checkpoint(), tools)),
    )


def _with(recipe: Recipe, **convert: str | int) -> Recipe:
    return msgspec.structs.replace(recipe, convert=msgspec.structs.replace(recipe.convert, **convert))


def _loaded(plugin: ModuleType | str) -> Plugin:
    return load(plugin) if isinstance(plugin, str) else Plugin(plugin.__name__, plugin)


def _expect(wrong: Sequence[str]) -> None:
    if wrong:
        raise AssertionError("\n".join(wrong))


def _answer(plugin: Plugin, hook: str, case: Case) -> object:
    """The answer to a copy of the question: a plugin that changes what it is given must not spoil the next check."""
    return plugin.ask(hook, PROMISES[hook], _asked(plugin, hook, case))


def _asked(plugin: Plugin, hook: str, case: Case) -> Question:
    """The case's question; a variant is told besides what a family such as llama answers to it."""
    question = copy.deepcopy(case.question)
    recipe, toolchain = question.recipe, question.toolchain
    if plugin.architectures is not None or hook not in _COMMANDS or recipe is None or toolchain is None:
        return question
    converts = hook == _COMMANDS[0]
    return replace(question, base=commands.convert(recipe, toolchain, "llama") if converts else commands.build(recipe))


def _misspelled(source: ModuleType | str, plugin: Plugin) -> list[str]:
    """pluggy refuses an unknown hook; a hook without its marker it would never find."""
    if isinstance(source, str):
        return [] if plugin.hooks() else ["it answers no hook"]
    known = plugin.hooks()
    wrong = [
        f"{name} lacks @forge.hookimpl, so nobody will ask it"
        for name, thing in vars(source).items()
        if name.startswith(f"{hookspecs.PROJECT}_") and callable(thing) and name not in known
    ]
    return wrong or ([] if known else ["it answers no hook: mark its functions with @forge.hookimpl"])


def _architectures(plugin: Plugin) -> list[str]:
    stated = plugin.architectures
    if stated is None:
        return []
    if not stated:
        return ["forge_architectures names none: a variant answers None, a family at least one"]
    return [f"forge_architectures names {each!r}" for each in stated if not each.isidentifier() or stated.count(each) > 1]


def _whole(plugin: Plugin) -> list[str]:
    if plugin.architectures is None:
        return []
    return [f"a family answers {hook}, and this one does not" for hook in _COMMANDS if hook not in plugin.hooks()]


def _typed(plugin: Plugin, asked: Sequence[Case]) -> list[str]:
    wrong: list[str] = []
    for hook in plugin.hooks():
        for case in asked:
            try:
                _answer(plugin, hook, case)
            except PluginError as error:
                wrong.append(f"{case.name}: {error.what}")
    return wrong


def _pure(plugin: Plugin, asked: Sequence[Case]) -> list[str]:
    wrong: list[str] = []
    for hook in plugin.hooks():
        for case in asked:
            given = _asked(plugin, hook, case)
            before = copy.deepcopy(given)
            first = copy.deepcopy(plugin.ask(hook, PROMISES[hook], given))
            if given != before:
                wrong.append(f"{case.name}: {hook} changes what it is given")
            if _answer(plugin, hook, case) != first:
                wrong.append(f"{case.name}: {hook} answers the same question differently each time")
    return wrong


def _commands(plugin: Plugin, asked: Sequence[Case]) -> Iterator[tuple[str, Command]]:
    for hook in _COMMANDS:
        for case in asked if hook in plugin.hooks() else ():
            for command in cast("tuple[Command, ...] | None", _answer(plugin, hook, case)) or ():
                yield f"{case.name}: {hook}", command


def _paths(plugin: Plugin, asked: Sequence[Case]) -> list[str]:
    wrong: list[str] = []
    for where, command in _commands(plugin, asked):
        words = (*command.argv, *command.env.values())
        named = [word.partition("=")[2] if word.startswith("-") and "=" in word else word for word in words]
        for path in named:
            strange = path.startswith(("/", "~")) and not path.startswith(_OURS)
            if strange or ".." in PurePosixPath(path).parts:
                wrong.append(f"{where} names {path!r}; allowed are /forge/<need>, /forge/out and the image's own folders")
        if not any(path == commands.OUT or path.startswith(f"{commands.OUT}/") for path in named):
            wrong.append(f"{where} never names {commands.OUT}, so its result would be lost")
    return wrong


def _well_formed(plugin: Plugin, asked: Sequence[Case]) -> list[str]:
    wrong: list[str] = []
    for where, command in _commands(plugin, asked):
        if not command.argv or not all(command.argv):
            wrong.append(f"{where} has an empty word in {command.argv!r}")
            continue
        if PurePosixPath(command.argv[0]).name in _SHELLS:
            wrong.append(f"{where} goes through {command.argv[0]!r}; say the program and its arguments")
        for word in command.argv:
            if any(char in word for char in "\0\n\r"):
                wrong.append(f"{where} has a control character in {word!r}")
            elif word.startswith("-") and not _FLAG.fullmatch(word) and not _NUMBER.fullmatch(word):
                wrong.append(f"{where} has {word!r}, which is no flag")
    return wrong


def _own_flags(plugin: Plugin, asked: Sequence[Case]) -> list[str]:
    """What a recipe says in convert.args and build.args belongs on the command line, and cannot pass for another flag."""
    wrong: list[str] = []
    for hook, table in zip(_COMMANDS, ("convert", "build"), strict=True):
        if hook not in plugin.hooks():
            continue
        recipe = asked[0].question.recipe
        limits = msgspec.structs.replace(getattr(recipe, table), args={_PROBE: "--evil"})
        probing = msgspec.structs.replace(cast("Recipe", recipe), **{table: limits})
        question = Question(probing, asked[0].question.checkpoint, asked[0].question.toolchain)
        answer = cast("tuple[Command, ...] | None", _answer(plugin, hook, Case("probe", question)))
        words = [word for command in answer or () for word in command.argv]
        if answer and f"--{_PROBE}=--evil" not in words:
            wrong.append(f"{hook} loses what {table}.args says, or lets it pass for a flag; use forge.trtllm.flags")
    return wrong


def _engines(plugin: Plugin, asked: Sequence[Case]) -> list[str]:
    """Every engine's folder is a plain relative one, and a command of the build names it as its result."""
    wrong: list[str] = []
    if "forge_engines" not in plugin.hooks():
        return wrong
    for case in asked:
        built = {word for where, command in _commands(plugin, (case,)) if where.endswith(_COMMANDS[1]) for word in command.argv}
        for engine in cast("tuple[Engine, ...] | None", _answer(plugin, "forge_engines", case)) or ():
            place = f"{commands.OUT}/{engine.folder}".rstrip("/")
            if PurePosixPath(engine.folder).is_absolute() or ".." in PurePosixPath(engine.folder).parts:
                wrong.append(f"{case.name}: forge_engines: {engine.folder!r} leaves {commands.OUT}")
            elif built and place not in built:
                wrong.append(f"{case.name}: forge_engines: no command of the build leaves an engine in {place}")
    return wrong


def _diagnoses(plugin: Plugin, asked: Sequence[Case]) -> list[str]:
    if "forge_diagnoses" not in plugin.hooks():
        return []
    rows = cast("tuple[Diagnosis, ...] | None", _answer(plugin, "forge_diagnoses", asked[0])) or ()
    wrong = [f"forge_diagnoses: {row.name}: {what}" for row in rows if (what := fault(row))]
    ours = {row.name for row in DIAGNOSES}
    return wrong + [f"forge_diagnoses: {row.name} is the name of a row of forge's own" for row in rows if row.name in ours]


def _patches(plugin: Plugin, asked: Sequence[Case]) -> list[str]:
    wrong: list[str] = []
    if "forge_patches" not in plugin.hooks():
        return wrong
    for case in asked:
        for patch in cast("tuple[Patch, ...] | None", _answer(plugin, "forge_patches", case)) or ():
            wrong += [f"{case.name}: forge_patches: {what}" for what in _of_patch(patch)]
    return list(dict.fromkeys(wrong))


def _of_patch(patch: Patch) -> Iterator[str]:
    in_image = patch.file.startswith(_OURS[1:])
    if ".." in PurePosixPath(patch.file).parts or (isinstance(patch, JsonPatch) == in_image):
        yield f"{patch.file!r} is neither a script of the image nor a JSON file of the checkpoint"
    match patch:
        case TextPatch(find=""):
            yield "a text patch has to say what to find"
        case TextPatch():
            once = patches.apply(patch, patch.find).text
            again = patches.apply(TextPatch(patch.file, patch.find, patch.put, required=False), once).text
            if once != again:
                yield f"the patch of {patch.find!r} changes the text once more each time"
        case CallPatch():
            if not patch.keywords or not all(word.isidentifier() for word in patch.keywords) or patch.start < 0:
                yield f"the patch of {patch.call!r} names no keywords that Python would take"
        case JsonPatch():
            if not patch.keys:
                yield f"the patch of {patch.file!r} sets nothing"
