"""What families send is held to NVIDIA's real argparse, version by version, and forge's verdict to argparse's."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

import originals
import parser_of
import shipped
from command_kit import REFUSED, forms, recipe
from forge.schema.values import Command, Toolchain
from forge.trtllm import help_texts
from forge.trtllm.image_table import examples

pytestmark = pytest.mark.slow
VERSIONS = ("0.14.0", "0.16.0", "0.19.0", "0.20.0", "0.21.0", "1.0.0")
BUILD = "tensorrt_llm/commands/build.py"
TAKEN = 0
"""argparse's exit code; 2 where it refuses, and any other from a script that cannot be run without what it imports."""


@dataclass
class Program:
    """One of NVIDIA's, as far as its argparse."""

    script: Path

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        argv = (sys.executable, parser_of.__file__, str(self.script), *words)
        return subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, check=False)

    @cached_property
    def help(self) -> str:
        return self.run("--help").stdout

    @property
    def source(self) -> str:
        """What forge reads of it: a script's text, and nothing of a program on PATH."""
        return "" if self.script.name == "build.py" else self.script.read_text(encoding="utf-8")


def commands(version: str) -> Iterator[Command]:
    """Those of the shipped recipes, and of all that forge's own families and variants put together."""
    tools = Toolchain("image", version, examples(version))
    wanted = [shipped.recipe(file) for file in shipped.ENGINES]
    wanted += [recipe(*each) for each in forms() if each[2] not in REFUSED.get(each[1] or each[0], ())]
    for each in wanted:
        family = shipped.family(each)
        yield from (*family.convert_commands(tools), *family.build_commands(tools))


def programs(version: str) -> list[tuple[Program, tuple[str, ...]]]:
    """(program, its arguments) of each command whose program this version has."""
    held: dict[str, Program] = {}
    found: list[tuple[Program, tuple[str, ...]]] = []
    for argv in dict.fromkeys(command.argv for command in commands(version)):
        built = argv[0] == "trtllm-build"
        path = BUILD if built else argv[1].removeprefix("/app/")
        file = originals.source(version, path)
        if file is not None:
            found.append((held.setdefault(path, Program(file)), argv[1:] if built else argv[2:]))
    if not found:
        pytest.skip(originals.MISSING)
    return found


def _code(each: tuple[Program, tuple[str, ...]]) -> int:
    program, words = each
    return program.run(*words).returncode


@pytest.mark.parametrize("version", VERSIONS)
def test_forge_refuses_nothing_that_nvidias_argparse_takes(version: str) -> None:
    wanted = programs(version)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        codes = list(pool.map(_code, wanted))
    assert TAKEN in codes
    for (program, argv), code in zip(wanted, codes, strict=True):
        if code == TAKEN:
            assert help_texts.complaints(argv, program.help, program.source) == (), (program.script, argv)
