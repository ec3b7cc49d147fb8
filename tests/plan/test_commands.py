"""What the shipped recipes run: exact command lines, held to the flags that NVIDIA's tools know."""

import importlib
import os
from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace

import shipped
from command_kit import REFUSED, VARIANTS, forms, recipe, resolved_of
from forge.plan.families import Family, load
from forge.plan.plan import check, plan
from forge.plan.plugin import Plugin, Question
from forge.plan.steps import Run
from forge.schema.values import Command, Role
from forge.trtllm.image_table import toolchain
from known_flags import strange
from shipped import ROOT

GOLDEN = Path(__file__).parents[1] / "golden" / "commands"


def _line(command: Command) -> str:
    return " ".join((*(f"{name}={value}" for name, value in command.env.items()), *command.argv))


@pytest.mark.parametrize("file", shipped.ENGINES, ids=lambda file: file.stem)
def test_a_shipped_recipe_runs_exactly_these_commands(file: Path) -> None:
    """FORGE_GOLDEN=write writes them down anew, for a person to read the difference."""
    golden = GOLDEN / f"{file.stem}.txt"
    made = "".join(f"{_line(command)}\n" for command in shipped.commands(shipped.recipe(file)))
    if os.environ.get("FORGE_GOLDEN") == "write":
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(made, encoding="utf-8")
    assert made == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", shipped.ENGINES, ids=lambda file: file.stem)
def test_a_shipped_recipe_is_found_without_fault_and_planned(file: Path) -> None:
    resolved = resolved_of(file)
    assert check(resolved) == ()
    steps = {step.name.rpartition(": ")[2]: step.action for step in plan([resolved]).steps}
    ran = [action for action in steps.values() if isinstance(action, Run)]
    assert [command for action in ran for command in action.commands] == list(shipped.commands(resolved.recipe))


class Counting(Plugin):
    """Counts what it is asked, by hook."""

    def __init__(self, name: str) -> None:
        super().__init__(name, importlib.import_module(f"forge_{name.replace('-', '_')}"))
        self.asked: Counter[str] = Counter()

    def ask(self, hook: str, promised: object, question: Question) -> object:
        self.asked[hook] += 1
        return super().ask(hook, promised, question)


def test_a_plan_asks_a_plugin_each_question_once() -> None:
    resolved = resolved_of(ROOT / "recipes" / "vicuna-7b-eagle.toml")
    family, variant = Counting("llama"), Counting("eagle")
    known = Family(resolved.recipe, resolved.facts.checkpoint, family, variant, resolved.facts.draft_checkpoint)
    assert plan([replace(resolved, family=known)]).steps == plan([resolved]).steps
    assert {"forge_convert_commands", "forge_check", "forge_requirements"} <= set(family.asked)
    assert {*family.asked.values(), *variant.asked.values()} == {1}


def test_every_golden_file_belongs_to_a_recipe() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == {file.stem for file in shipped.ENGINES}


@pytest.mark.parametrize(
    ("family", "variant", "form"), [each for each in forms() if each[2] not in REFUSED.get(each[1] or each[0], ())]
)
def test_every_flag_is_one_that_nvidias_tool_knows(family: str, variant: str, form: str) -> None:
    wanted = recipe(family, variant, form)
    assert shipped.family(wanted).check(toolchain("25.08")) == ()
    made = list(shipped.commands(wanted))
    assert made
    assert {_line(command): strange(command.argv) for command in made} == {_line(command): [] for command in made}


def test_a_quantization_that_a_script_does_not_know_is_refused() -> None:
    refused: dict[str, set[str]] = {}
    for family, variant, form in forms():
        found = shipped.family(recipe(family, variant, form)).check(toolchain("25.08"))
        if found:
            assert [each.where for each in found] == ["convert.quantization"]
            refused.setdefault(variant or family, set()).add(form)
    assert refused == REFUSED


def test_variants_are_the_plugins_that_serve_no_architecture() -> None:
    assert all(load(name).architectures is None for name in VARIANTS)


def test_the_names_of_two_engines_are_told_apart() -> None:
    wanted = shipped.recipe(shipped.ROOT / "recipes" / "llama-3.1-8b-draft-target.toml")
    assert [(each.folder, each.role) for each in shipped.family(wanted).engines()] == [
        ("target", Role.TENSORRT_LLM),
        ("draft", Role.DRAFT),
    ]
