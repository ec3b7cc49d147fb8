"""docs/hooks.md says what is true: signatures are compared, examples are run."""

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from fakes import LLAMA
from forge import Checkpoint, hookspecs
from forge.plan.plugin import Plugin, Question
from forge.schema.values import Recipe, Source
from forge.testing.questions import PROMISES
from forge.trtllm.image_table import toolchain

DOCS = Path(__file__).parents[2] / "docs"
HOOKS = {name: thing for name, thing in vars(hookspecs).items() if name.startswith("forge_")}
TEXT = (DOCS / "hooks.md").read_text(encoding="utf-8")
SECTIONS = {section.split("(")[0]: section for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]}
QUESTION = Question(Recipe(name="m", source=Source(hub="a/b")), Checkpoint(LLAMA), toolchain("25.08"))


def test_every_hook_is_documented_and_no_other() -> None:
    assert list(SECTIONS) == list(HOOKS)
    assert set(PROMISES) == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hooks_section_has_its_signature_and_since_line(name: str) -> None:
    hook = HOOKS[name]
    section = SECTIONS[name]
    told = " ".join(section.splitlines()[0].split())
    assert told == f"{name}{_signature(hook)}"
    since = re.search(r"Since API (\d+)\.", hook.__doc__ or "")
    assert since is not None
    assert f"\nSince {since.group()[6:]} Answers: " in section
    assert int(since.group(1)) == hookspecs.SINCE.get(name, 1) <= hookspecs.API


def _signature(hook: object) -> str:
    assert callable(hook)
    spelled = str(inspect.signature(hook))
    return (
        re.sub(
            r"\bcollections\.abc\.|\bforge\.(schema\.values|schema\.recipe|schema\.speculation_key|errors|diagnoses)\.",
            "",
            spelled,
        )
        .replace("TextPatch | forge.schema.values.CallPatch | forge.schema.values.JsonPatch", "Patch")
        .replace("TextPatch | CallPatch | JsonPatch", "Patch")
    )


@pytest.mark.parametrize("name", HOOKS)
def test_a_hooks_example_runs_and_answers_what_the_hook_promises(name: str) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", SECTIONS[name], re.MULTILINE | re.DOTALL)
    module = ModuleType("example")
    exec(compile(code, f"docs/hooks.md {name}", "exec"), vars(module))
    plugin = Plugin("example", module)
    assert plugin.hooks() == (name,)
    assert plugin.ask(name, PROMISES[name], QUESTION) is not None
