"""Whoever wrote a plugin is told the distribution, the file and the line of what it raised, and of what it answered wrongly."""

import json
import sys
from collections.abc import Callable, Iterator
from importlib import invalidate_caches
from pathlib import Path
from unittest import SkipTest

import pytest
from click.testing import CliRunner

from forge import Checkpoint, Recipe
from forge.cli import main
from forge.errors import PluginError
from forge.plan import families
from forge.plan.families import Family
from forge.schema.recipe import SpeculationTable
from forge.schema.values import Source
from forge.testing import PluginConformance, check_plugin
from forge.trtllm.image_table import toolchain

TOOLS = toolchain("25.08")
LLAMA = Checkpoint({"architectures": ["LlamaForCausalLM"]})

WHOLE = """
from forge import hookimpl, trtllm

@hookimpl
def forge_architectures():
    return ("StrangerForCausalLM",)

@hookimpl
def forge_convert_commands(recipe, toolchain):
    return trtllm.convert(recipe, toolchain, "stranger")

@hookimpl
def forge_build_commands(recipe):
    return trtllm.build(recipe)
"""

Install = Callable[[str], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a stranger's package `forge_stranger` under the name "stranger", of the distribution forge-stranger 1.2."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    invalidate_caches()

    def put(source: str) -> Path:
        package = tmp_path / "forge_stranger"
        package.mkdir()
        (package / "__init__.py").write_text(source)
        (package / "inner.py").write_text("def read(table):\n    return table['nothing']  # here\n")
        info = tmp_path / "forge_stranger-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: forge-stranger\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("[forge]\nstranger = forge_stranger\n")
        return package / "__init__.py"

    yield put
    for module in [name for name in sys.modules if name.partition(".")[0] == "forge_stranger"]:
        del sys.modules[module]


def _family(**said: object) -> Family:
    recipe = Recipe(name="m", source=Source(hub="owner/model"), family="stranger", **said)  # type: ignore[arg-type]
    return Family.of(recipe, Checkpoint({"architectures": ["StrangerForCausalLM"]}))


def _variant(**speculation: object) -> Family:
    table = SpeculationTable(**speculation)  # type: ignore[arg-type]
    return Family.of(Recipe(name="m", source=Source(hub="o/m"), variant="stranger", speculation=table), LLAMA)


def _number(file: Path, text: str) -> int:
    return next(at for at, line in enumerate(file.read_text().splitlines(), 1) if text in line)


def test_a_plugins_error_names_its_distribution_and_deepest_own_line(install: Install) -> None:
    file = install(
        WHOLE + "\nfrom forge_stranger import inner\n\n@hookimpl\ndef forge_check(recipe):\n    return inner.read({})\n"
    )
    with pytest.raises(PluginError) as raised:
        _family().check(TOOLS)
    assert raised.value.where == f"{file.with_name('inner.py')}:2"
    assert str(raised.value).splitlines() == [
        f"{file.with_name('inner.py')}:2: plugin 'stranger' of forge-stranger 1.2 failed in forge_check: KeyError: 'nothing'",
        "    2 |     return table['nothing']  # here",
    ]
    assert isinstance(raised.value.__cause__, KeyError)


def test_an_error_of_forge_names_the_plugins_calling_line(install: Install) -> None:
    file = install(WHOLE + "\n@hookimpl\ndef forge_patches(toolchain):\n    return trtllm.script(None, 'x')\n")
    with pytest.raises(PluginError, match="AttributeError") as raised:
        _family().patches(TOOLS)
    assert raised.value.where == f"{file}:{_number(file, 'trtllm.script(None')}"


@pytest.mark.parametrize(
    ("answer", "told"), [("['x']", "answered list, expected a tuple of Command"), ("()", "answered no command")]
)
def test_a_wrong_answer_names_the_line_of_its_hook(install: Install, answer: str, told: str) -> None:
    file = install(WHOLE.replace("trtllm.build(recipe)", answer))
    with pytest.raises(PluginError, match=told) as raised:
        _family().build_commands(TOOLS)
    line = _number(file, "def forge_build_commands")
    assert (raised.value.where, raised.value.source) == (f"{file}:{line}", f"{line} | def forge_build_commands(recipe):")
    assert raised.value.distribution == "forge-stranger 1.2"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import json\nraise ValueError('no')\n", 2),
        ("import json\ndef (:\n", 2),
        ("import json\nimport nowhere_at_all\n", 2),
        ("import json\nFORGE_API = 99\n", 2),
        ("import json\nFORGE_API = '3'\n", 2),
        ("from forge import hookimpl\n@hookimpl\ndef forge_chek(): ...\n", 3),
        ("from forge import hookimpl\n@hookimpl\ndef forge_check(recepie): ...\n", 3),
    ],
)
def test_what_does_not_load_names_its_line_too(install: Install, source: str, line: int) -> None:
    file = install(source)
    with pytest.raises(PluginError) as raised:
        families.load("stranger")
    assert raised.value.where == f"{file}:{line}"
    assert raised.value.source.removeprefix(f"{line} | ") == source.splitlines()[line - 1]
    info = next(info for info in families.installed() if info.name == "stranger")
    assert (info.where, info.kind) == (f"{file}:{line}", "unknown")
    assert info.health != "ok"


def test_a_misspelled_argument_is_told_with_the_one_meant(install: Install) -> None:
    install("from forge import hookimpl\n@hookimpl\ndef forge_check(recepie): ...\n")
    with pytest.raises(PluginError, match="did you mean 'recipe'"):
        families.load("stranger")


def test_the_command_line_shows_the_line_v_the_traceback(install: Install, tmp_path: Path) -> None:
    file = install(WHOLE + "\n@hookimpl\ndef forge_check(recipe):\n    return {}['x']\n")
    recipe = tmp_path / "m.toml"
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["StrangerForCausalLM"]}')
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    recipe.write_text('name = "m"\nfamily = "stranger"\n[source]\npath = "model"\n[runtime]\nkind = "twin"\n')
    line = _number(file, "return {}['x']")
    run = CliRunner()
    plain = run.invoke(main, ["plan", str(recipe)])
    assert plain.exit_code == 4, plain.output
    assert f"{file}:{line}: plugin 'stranger' of forge-stranger 1.2 failed in forge_check: KeyError: 'x'" in plain.stderr
    assert f"    {line} |     return {{}}['x']\n    -v shows the traceback\n" in plain.stderr
    assert "Traceback" not in plain.stderr
    loud = run.invoke(main, ["plan", str(recipe), "-v"])
    assert "Traceback (most recent call last):\n" in loud.stderr
    assert f'File "{file}", line {line}, in forge_check' in loud.stderr
    told = json.loads(run.invoke(main, ["plan", str(recipe), "--json"]).stdout)["error"]
    assert (told["where"], told["plugin"], told["hook"]) == (f"{file}:{line}", "stranger", "forge_check")
    assert (told["distribution"], told["source"]) == ("forge-stranger 1.2", f"{line} |     return {{}}['x']")


def test_a_family_without_a_required_hook_is_not_ok(install: Install) -> None:
    install(WHOLE.partition("@hookimpl\ndef forge_build_commands")[0])
    info = next(info for info in families.installed() if info.name == "stranger")
    assert (info.kind, info.health) == ("family", "a family answers forge_build_commands, and this one does not")
    shown = CliRunner().invoke(main, ["plugins"]).stdout
    assert "a family answers forge_build_commands, and this one does not" in shown


def test_forge_plugins_shows_the_line_of_a_broken_one(install: Install) -> None:
    file = install("import json\nraise ValueError('no')\n")
    shown = CliRunner().invoke(main, ["plugins"]).stdout
    assert f"stranger: {file}:2\n    2 | raise ValueError('no')\n    -v shows the traceback\n" in shown
    assert "ValueError: no" in CliRunner().invoke(main, ["plugins", "-v"]).stdout


# -- the keys of a variant

DECLARING = """
from forge import SpeculationKey, hookimpl

FORGE_API = 5

@hookimpl
def forge_speculation():
    return (SpeculationKey("max_draft_len"), SpeculationKey("tree_width"), SpeculationKey("sure", kind="float"))
"""


def _told(family: Family) -> list[str]:
    return [str(problem).replace("\n    ", " -> ") for problem in family.check(TOOLS)]


def test_a_variants_declared_keys_are_taken(install: Install) -> None:
    install(DECLARING)
    assert _told(_variant(max_draft_len=4, args={"tree_width": 3, "sure": 1})) == []


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        (
            {"args": {"tree_widht": 3}},
            "args.tree_widht: UNREAD -> did you mean speculation.args.tree_width?",
        ),
        ({"ngram_size": 3}, "ngram_size: UNREAD -> it reads max_draft_len, args.tree_width, args.sure"),
        (
            {"args": {"max_draft_len": 3}},
            "args.max_draft_len: stands in [speculation] itself -> write it there: max_draft_len = ...",
        ),
        ({"args": {"tree_width": "3"}}, "args.tree_width: found '3'; allowed: a whole number"),
        ({"args": {"sure": True}}, "args.sure: found True; allowed: a number"),
    ],
)
def test_a_key_that_a_variant_does_not_declare_is_refused(install: Install, stated: dict[str, object], told: str) -> None:
    install(DECLARING)
    assert _told(_variant(**stated)) == [f"speculation.{told.replace('UNREAD', 'stranger does not read it')}"]


def test_a_silent_variant_reads_what_its_api_shows(install: Install) -> None:
    file = install("from forge import hookimpl\n@hookimpl\ndef forge_check(): return ()\n")
    assert _told(_variant(max_draft_len=4)) == []
    assert "declares no key of its own" in _told(_variant(args={"tree_width": 3}))[0]
    del sys.modules["forge_stranger"]
    file.write_text("FORGE_API = 5  # a longer text than before\n" + file.read_text())
    assert "stranger does not read it" in _told(_variant(max_draft_len=4))[0]


# -- the kit


def test_the_kit_tells_each_fault_once_over_many_cases(install: Install) -> None:
    file = install(WHOLE + "\n@hookimpl\ndef forge_check(recipe):\n    return {}['x']\n")
    (problem,) = check_plugin("stranger")
    line = _number(file, "return {}['x']")
    assert problem.where == f"{file}:{line}"
    assert "more cases: plugin 'stranger' of forge-stranger 1.2 failed in forge_check: KeyError: 'x'" in problem.what
    assert problem.hint == f"{line} |     return {{}}['x']"


OVERRIDING = """
from forge import ConfigOverrides, Role

@hookimpl
def forge_config_overrides():
    return ConfigOverrides({Role.TENSORRT_LLM: {"batch_schedule_policy": "max_utilization"}})
"""
NO_VARIANT = """
from forge import SpeculationKey
FORGE_API = 5

@hookimpl
def forge_speculation():
    return (SpeculationKey("x"),)
"""
SINCE_4 = "\n@hookimpl\ndef forge_since(): return ()\n"
DRAFT_2 = "\n@hookimpl\ndef forge_check(draft): return ()\n"


@pytest.mark.parametrize(
    ("source", "told", "hint"),
    [
        (OVERRIDING, "tensorrt_llm.batch_schedule_policy: the model's config.pbtxt has no such parameter", "did you mean"),
        ("\nFORGE_API = '3'\n", "FORGE_API is '3', and no whole number from 1 on", "without quotes: FORGE_API = 6"),
        (SINCE_4, "forge_since came with API 4, and the plugin says 1", "say FORGE_API = 4"),
        (DRAFT_2, "draft in forge_check came with API 2, and the plugin says 1", "say FORGE_API = 2"),
        (NO_VARIANT, "only a variant is asked, and this is a family", ""),
    ],
)
def test_the_kit_refuses_what_forge_would_refuse_later(install: Install, source: str, told: str, hint: str) -> None:
    install(WHOLE + source)
    (problem,) = check_plugin("stranger")
    assert told in problem.what
    assert hint in problem.hint


def test_what_does_not_load_fails_one_check_of_the_class(install: Install) -> None:
    install("import json\nFORGE_API = '3'\n")

    class Stranger(PluginConformance):
        plugin = "stranger"

    checks = [name for name in dir(Stranger) if name.startswith("test_")]
    ends: list[str] = []
    for name in checks:
        try:
            getattr(Stranger(), name)()
        except (PluginError, SkipTest) as error:
            ends.append(type(error).__name__)
    assert sorted(ends) == ["PluginError", *["SkipTest"] * (len(checks) - 1)]
