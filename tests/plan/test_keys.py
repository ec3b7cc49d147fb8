"""Keys as they were noted down: a store that was filled by an earlier forge is hit by this one.

What forge itself lays is left out (the twin's backend, its converter, its entry with forge's skeletons: they change with every
fix of them); all else of the shipped recipes' plans is in tests/golden/keys.json. FORGE_GOLDEN=write notes it anew: only for a
change that is meant to make everybody build again, and then with a line in CHANGELOG.md.
"""

import json
import os
from pathlib import Path

import pytest

import shipped
from command_kit import resolved_of
from forge.plan import hf_checkpoint
from forge.plan.plan import plan
from forge.plan.steps import Assemble, LayBackends
from forge.schema.values import RuntimeKind, TextFile

GOLDEN = Path(__file__).parents[1] / "golden" / "keys.json"


def _keys(file: Path) -> dict[str, str]:
    kind = shipped.recipe(file).runtime.kind
    own = (LayBackends, Assemble) if kind is RuntimeKind.TWIN else (LayBackends,)
    return {step.name: step.key for step in plan([resolved_of(file)]).steps if not isinstance(step.action, own)}


def test_the_keys_of_shipped_recipes_are_those_noted_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_checkpoint, "converter_sources", lambda: (TextFile("twin/gguf.py", "the converter"),))
    made = json.dumps({file.stem: _keys(file) for file in shipped.FILES}, indent=2, sort_keys=True) + "\n"
    if os.environ.get("FORGE_GOLDEN") == "write":
        GOLDEN.write_text(made, encoding="utf-8")
    assert made == GOLDEN.read_text(encoding="utf-8")
