"""The kit's checks of commands, and of the engines that they leave."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import cast

import msgspec

from forge.plan.plugin import REQUIRED as COMMANDS, Plugin, Question
from forge.schema.values import Command, Engine, Recipe
from forge.testing.questions import Case, Fault, answer, commanded
from forge.trtllm import commands

_FLAG = re.compile(r"--?[A-Za-z][A-Za-z0-9_-]*(=.*)?")
_NUMBER = re.compile(r"-\d+(\.\d+)?([eE][+-]?\d+)?")
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "env", "sudo", "eval"})
_PROBE = "forge-probe"
OURS = ("/forge/", "/app/", "/opt/tritonserver/")
"""Where a command's paths may point: forge's constants, and what NVIDIA's image brings."""


def paths(plugin: Plugin, asked: tuple[Case, ...]) -> Iterator[Fault]:
    for hook, case, command in commanded(plugin, asked):
        words = (*command.argv, *command.env.values())
        named = [word.partition("=")[2] if word.startswith("-") and "=" in word else word for word in words]
        for path in named:
            strange = path.startswith(("/", "~")) and not path.startswith(OURS)
            if strange or ".." in PurePosixPath(path).parts:
                allowed = "/forge/<need>, /forge/out and the image's own folders"
                yield Fault(hook, f"{hook} names {path!r}; allowed are {allowed}", case)
        if not any(path == commands.OUT or path.startswith(f"{commands.OUT}/") for path in named):
            yield Fault(hook, f"{hook} never names {commands.OUT}, so its result would be lost", case)


def well_formed(plugin: Plugin, asked: tuple[Case, ...]) -> Iterator[Fault]:
    for hook, case, command in commanded(plugin, asked):
        if not command.argv or not all(command.argv):
            yield Fault(hook, f"{hook} has an empty word in {command.argv!r}", case)
            continue
        if PurePosixPath(command.argv[0]).name in _SHELLS:
            yield Fault(hook, f"{hook} goes through {command.argv[0]!r}; say the program and its arguments", case)
        for word in command.argv:
            if any(char in word for char in "\0\n\r"):
                yield Fault(hook, f"{hook} has a control character in {word!r}", case)
            elif word.startswith("-") and not _FLAG.fullmatch(word) and not _NUMBER.fullmatch(word):
                yield Fault(hook, f"{hook} has {word!r}, which is no flag", case)


def own_flags(plugin: Plugin, asked: tuple[Case, ...]) -> Iterator[Fault]:
    """What a recipe says in convert.args and build.args belongs on the command line, and cannot pass for another flag."""
    for hook, table in zip(COMMANDS, ("convert", "build"), strict=True):
        recipe = asked[0].question.recipe
        limits = msgspec.structs.replace(getattr(recipe, table), args={_PROBE: "--evil"})
        probing = msgspec.structs.replace(cast("Recipe", recipe), **{table: limits})
        question = Question(probing, asked[0].question.checkpoint, asked[0].question.toolchain)
        given = cast("tuple[Command, ...] | None", answer(plugin, hook, Case("probe", question)))
        words = [word for command in given or () for word in command.argv]
        if given and f"--{_PROBE}=--evil" not in words:
            what = f"{hook} loses what {table}.args says, or lets it pass for a flag; use forge.trtllm.flags"
            yield Fault(hook, what)


def engines(plugin: Plugin, asked: tuple[Case, ...]) -> Iterator[Fault]:
    """Every engine's folder is a plain relative one, and a command of the build names it as its result."""
    hook = "forge_engines"
    for case in asked if hook in plugin.hooks() else ():
        built = {word for made, _, command in commanded(plugin, (case,)) if made == COMMANDS[1] for word in command.argv}
        for engine in cast("tuple[Engine, ...] | None", answer(plugin, hook, case)) or ():
            place = f"{commands.OUT}/{engine.folder}".rstrip("/")
            if PurePosixPath(engine.folder).is_absolute() or ".." in PurePosixPath(engine.folder).parts:
                yield Fault(hook, f"{hook}: {engine.folder!r} leaves {commands.OUT}", case.name)
            elif built and place not in built:
                yield Fault(hook, f"{hook}: no command of the build leaves an engine in {place}", case.name)
