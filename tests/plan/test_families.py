"""How plugins are reached: finding, asking, checking, naming the culprit."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import forge_gemma
import forge_llama
from forge import (
    Checkpoint,
    Command,
    ConfigOverrides,
    Engine,
    ForgeError,
    JsonPatch,
    Patch,
    Problem,
    Recipe,
    Requirements,
    Role,
    Tokenizer,
    Toolchain,
    hookimpl,
)
from forge.errors import PluginError, RecipeError
from forge.plan import families
from forge.plan.families import Family
from forge.plan.plugin import Plugin
from forge.schema.values import Source
from forge.trtllm.image_table import toolchain

RECIPE = Recipe(name="m", source=Source(hub="owner/model"))
LLAMA = Checkpoint({"architectures": ["LlamaForCausalLM"]})
TOOLS = toolchain("25.08")

Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """Installs a stranger's distribution for real: a module and its metadata on the path. (distribution, name, source)."""
    loaded = set(sys.modules)
    sys.path.insert(0, str(tmp_path))

    def put(distribution: str, name: str, source: str) -> None:
        module = f"stranger_{distribution.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[forge]\n{name} = {module}\n")

    yield put
    sys.path.remove(str(tmp_path))
    for module in set(sys.modules) - loaded:
        if module.startswith("stranger_"):
            del sys.modules[module]


FAMILY_SOURCE = """
from forge import hookimpl
@hookimpl
def forge_architectures(): return ("{}",)
"""


def _plugin(**hooks: object) -> Plugin:
    return Plugin("stranger", SimpleNamespace(**hooks))


def _family(family: Plugin, variant: Plugin | None = None) -> Family:
    return Family(RECIPE, LLAMA, family, variant)


def test_shipped_families_are_installed_and_healthy() -> None:
    found = {info.name: info for info in families.installed()}
    assert {"llama", "gemma"} <= set(found)
    assert found["gemma"].kind == "family"
    assert found["gemma"].distribution == "triton-forge"
    assert (found["gemma"].api, found["gemma"].health) == (6, "ok")


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("LlamaForCausalLM", "llama"), ("MixtralForCausalLM", "llama"), ("Gemma3ForCausalLM", "gemma")],
)
def test_the_family_is_found_by_the_checkpoints_architectures(architecture: str, name: str) -> None:
    checkpoint = Checkpoint({"architectures": [architecture]})
    assert Family.of(RECIPE, checkpoint).name == name
    assert families.find(checkpoint) == name


def test_an_unserved_architecture_is_told_with_the_served_ones() -> None:
    with pytest.raises(RecipeError, match="no installed family serves Bert") as error:
        Family.of(RECIPE, Checkpoint({"architectures": ["Bert"]}))
    assert "gemma: GemmaForCausalLM" in str(error.value)
    assert "--runtime vllm" in str(error.value)


def test_a_checkpoint_that_says_nothing_asks_for_a_family() -> None:
    with pytest.raises(RecipeError, match="says nothing of its architecture") as error:
        Family.of(RECIPE, Checkpoint())
    assert "gemma, llama" in str(error.value)
    assert "eagle" not in str(error.value), "a variant is no family"


def test_two_families_that_serve_one_architecture_are_named(install: Install) -> None:
    install("other-llama", "llama2", FAMILY_SOURCE.format("LlamaForCausalLM"))
    with pytest.raises(RecipeError, match="llama and llama2 both serve LlamaForCausalLM"):
        Family.of(RECIPE, LLAMA)


def test_a_missing_plugin_is_told_with_what_is_installed() -> None:
    with pytest.raises(PluginError, match="'gema' failed in import: no such plugin") as error:
        families.load("gema")
    assert error.value.exit_code == 4
    assert error.value.hint.startswith("did you mean 'gemma'? installed: draft-target, eagle, gemma, llama, ")


def test_two_distributions_that_claim_one_name_are_both_named(install: Install) -> None:
    install("other-gemma", "gemma", FAMILY_SOURCE.format("X"))
    with pytest.raises(PluginError, match=r"other-gemma .* and triton-forge"):
        families.load("gemma")
    claimed = [info for info in families.installed() if info.name == "gemma"]
    assert [info.distribution for info in claimed] == ["other-gemma", "triton-forge"]
    assert all(info.health == "2 distributions claim this name" for info in claimed)
    assert Family.of(RECIPE, LLAMA).name == "llama"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("from forge import hookimpl\n@hookimpl\ndef forge_chek(): ...", "did you mean 'forge_check'?"),
        ("from forge import hookimpl\n@hookimpl\ndef forge_check(recepie): ...", "recepie"),
        ("FORGE_API = 99", "needs hook API 99"),
    ],
)
def test_a_broken_stranger_is_shown_and_stops_nobody_else(install: Install, source: str, told: str) -> None:
    install("broken-one", "broken", source)
    info = next(info for info in families.installed() if info.name == "broken")
    assert told in info.health
    assert (info.kind, info.distribution, info.version) == ("unknown", "broken-one", "1.2")
    assert Family.of(RECIPE, LLAMA).name == "llama"
    with pytest.raises(PluginError, match="broken"):
        families.load("broken")


def test_a_plugin_without_hooks_is_not_healthy(install: Install) -> None:
    install("empty-one", "empty", "")
    assert next(info for info in families.installed() if info.name == "empty").health.startswith("it answers no hook")


def test_a_variant_in_the_familys_place_is_told(install: Install) -> None:
    install("some-variant", "speedy", "from forge import hookimpl\n@hookimpl\ndef forge_check(): return ()")
    named = Recipe(name="m", source=RECIPE.source, family="speedy")
    with pytest.raises(RecipeError, match="'speedy' is a variant"):
        Family.of(named, LLAMA)
    twisted = Recipe(name="m", source=RECIPE.source, family="llama", variant="gemma")
    with pytest.raises(RecipeError, match="'gemma' is a family"):
        Family.of(twisted, LLAMA)
    good = Recipe(name="m", source=RECIPE.source, variant="speedy")
    assert Family.of(good, LLAMA).build_commands(TOOLS)[0].argv[0] == "trtllm-build"


def test_a_raise_is_the_plugins_fault_and_says_so() -> None:
    @hookimpl
    def forge_check() -> tuple[Problem, ...]:
        raise KeyError("oops")

    with pytest.raises(PluginError, match="'stranger' failed in forge_check: KeyError: 'oops'"):
        _family(_plugin(forge_check=forge_check)).check(TOOLS)

    @hookimpl
    def forge_tokenizer() -> Tokenizer:
        raise SystemExit(1)

    with pytest.raises(PluginError, match="SystemExit"):
        _family(_plugin(forge_tokenizer=forge_tokenizer)).tokenizer()


def test_what_a_plugin_has_to_tell_the_person_passes_unchanged() -> None:
    @hookimpl
    def forge_check() -> tuple[Problem, ...]:
        raise ForgeError("say please", hint="please")

    with pytest.raises(ForgeError, match="say please") as error:
        _family(_plugin(forge_check=forge_check)).check(TOOLS)
    assert not isinstance(error.value, PluginError)


def _answers(value: object) -> object:
    @hookimpl
    def forge_build_commands() -> object:
        return value

    return forge_build_commands


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("trtllm-build", "answered str, expected a tuple of Command"),
        ([Command(("x",))], "answered list, expected a tuple of Command"),
        (("trtllm-build",), r"answered str, expected Command \(at \[0\]\)"),
        ((Command(("x",)), Command(("x", 3))), r"answered int, expected str \(at \[1\].argv\[1\]\)"),  # type: ignore[arg-type]
        ((Command(["x"]),), r"answered list, expected a tuple of str \(at \[0\].argv\)"),  # type: ignore[arg-type]
        ((Command(("x",), {"A": 1}),), r"answered int, expected str \(at \[0\].env\['A'\]\)"),  # type: ignore[dict-item]
        ((), "answered no command"),
        (None, "answered no command"),
    ],
)
def test_a_wrong_answer_is_told_down_to_its_element(answer: object, told: str) -> None:
    family = _family(_plugin(forge_build_commands=_answers(answer)))
    with pytest.raises(PluginError, match=told):
        family.build_commands(TOOLS)


def test_wrong_words_deep_in_other_answers_are_found() -> None:
    @hookimpl
    def forge_tokenizer() -> Tokenizer:
        return Tokenizer(kind="bert")  # type: ignore[arg-type]

    @hookimpl
    def forge_config_overrides() -> ConfigOverrides:
        return ConfigOverrides({"tensorrt_llm": {"a": None}})  # type: ignore[dict-item]

    @hookimpl
    def forge_patches() -> tuple[Patch, ...]:
        return (JsonPatch("config.json", {"a": object()}), "x")  # type: ignore[return-value]

    family = _family(
        _plugin(
            forge_tokenizer=forge_tokenizer,
            forge_config_overrides=forge_config_overrides,
            forge_patches=forge_patches,
        )
    )
    with pytest.raises(PluginError, match="answered 'bert', expected one of 'auto'"):
        family.tokenizer()
    with pytest.raises(PluginError, match="answered str, expected Role"):
        family.config_overrides()
    with pytest.raises(PluginError, match="answered str, expected TextPatch or CallPatch or JsonPatch"):
        family.patches(TOOLS)


def _variant() -> Plugin:
    @hookimpl
    def forge_check() -> tuple[Problem, ...]:
        return (Problem("variant", "second"),)

    @hookimpl
    def forge_requirements() -> Requirements:
        return Requirements(pip=("accelerate", "sentencepiece"))

    @hookimpl
    def forge_convert_commands() -> tuple[Command, ...]:
        return (Command(("python3", "eagle.py")),)

    @hookimpl
    def forge_config_overrides() -> ConfigOverrides:
        return ConfigOverrides({Role.TENSORRT_LLM: {"a": 2}})

    return _plugin(
        forge_check=forge_check,
        forge_requirements=forge_requirements,
        forge_convert_commands=forge_convert_commands,
        forge_config_overrides=forge_config_overrides,
    )


def _ground() -> Plugin:
    @hookimpl
    def forge_check() -> tuple[Problem, ...]:
        return (Problem("family", "first"),)

    @hookimpl
    def forge_config_overrides() -> ConfigOverrides:
        return ConfigOverrides({Role.TENSORRT_LLM: {"a": 1, "b": 1}, Role.BLS: {"c": 1}})

    return Plugin("ground", SimpleNamespace(forge_check=forge_check, forge_config_overrides=forge_config_overrides))


def test_answers_come_from_the_variant_and_then_the_family() -> None:
    family = _family(Plugin("llama", forge_llama), _variant())
    assert family.convert_commands(TOOLS)[0].argv == ("python3", "eagle.py")
    assert family.build_commands(TOOLS)[0].argv[0] == "trtllm-build"
    assert family.tokenizer().kind == "llama"


def test_a_variant_is_told_what_its_family_answers() -> None:
    @hookimpl
    def forge_build_commands(base: tuple[Command, ...]) -> tuple[Command, ...]:
        return (*base, Command(("after", *base[0].argv[:1])))

    family = _family(Plugin("llama", forge_llama), _plugin(forge_build_commands=forge_build_commands))
    assert [command.argv[0] for command in family.build_commands(TOOLS)] == ["trtllm-build", "after"]
    alone = _family(_plugin(forge_build_commands=_answers((Command(("x",)),))))
    assert alone.build_commands(TOOLS) == (Command(("x",)),)


def test_a_check_is_told_of_the_draft_and_the_image() -> None:
    @hookimpl
    def forge_check(draft: Checkpoint, toolchain: Toolchain) -> tuple[Problem, ...]:
        return (Problem("m", f"{draft.config.get('vocab_size')} {toolchain.trtllm}"),)

    plugin = _plugin(forge_check=forge_check)
    assert Family(RECIPE, LLAMA, plugin).check(TOOLS)[0].what == "None 0.21.0"
    drafted = Family(RECIPE, LLAMA, plugin, draft=Checkpoint({"vocab_size": 7}))
    assert drafted.check(TOOLS)[0].what == "7 0.21.0"


def _engines(*engines: Engine) -> Plugin:
    @hookimpl
    def forge_engines() -> tuple[Engine, ...]:
        return engines

    return _plugin(forge_engines=forge_engines)


def test_a_build_makes_one_engine_unless_a_plugin_says_otherwise() -> None:
    assert _family(Plugin("llama", forge_llama)).engines() == (Engine(),)
    several = (Engine("a"), Engine("b", Role.DRAFT))
    assert _family(Plugin("llama", forge_llama), _engines(*several)).engines() == several


@pytest.mark.parametrize("wrong", [(), (Engine("a"), Engine("a", Role.DRAFT)), (Engine("a"), Engine("b"))])
def test_engines_that_would_lie_over_each_other_are_refused(wrong: tuple[Engine, ...]) -> None:
    with pytest.raises(PluginError, match=r"stranger and llama.*forge_engines"):
        _family(Plugin("llama", forge_llama), _engines(*wrong)).engines()


def test_joined_answers_have_the_familys_first_and_nothing_twice() -> None:
    assert _family(Plugin("llama", forge_llama), _variant()).requirements(TOOLS).pip == ("sentencepiece", "accelerate")
    assert [each.what for each in _family(_ground(), _variant()).check(TOOLS)] == ["first", "second"]
    assert len(_family(Plugin("gemma", forge_gemma), _variant()).patches(TOOLS)) == 3


def test_merged_overrides_let_the_variant_win_key_by_key() -> None:
    merged = _family(_ground(), _variant()).config_overrides()
    assert merged.roles == {Role.TENSORRT_LLM: {"a": 2, "b": 1}, Role.BLS: {"c": 1}}


def test_a_family_silent_on_its_tokenizer_has_the_usual() -> None:
    assert _family(_variant()).tokenizer() == Tokenizer()


KNOWS = """
from forge import Diagnosis, hookimpl

@hookimpl
def forge_diagnoses():
    return (
        Diagnosis("theirs", "flux of (?P<count>[0-9]+)", "{count} fluxes", "use fewer"),
        Diagnosis("greedy", ".*", "anything", "nothing"),
    )
"""


def test_failures_known_to_plugins_are_asked_and_useless_rows_skipped(install: Install) -> None:
    install("flux", "flux", KNOWS)
    install("broken", "broken", "import nowhere_at_all")
    assert [row.name for row in families.diagnoses()] == ["theirs"]
