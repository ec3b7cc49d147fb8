"""The kit for plugin authors: the conformance checks find what is wrong, and the fakes do the work of the ports."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest

import forge_llama
from fakes import FakeClient, FakeEnvironments, FakeExecutor, FakeOrigin, FakeServer
from forge import Command, Diagnosis, Engine, JsonPatch, Patch, Recipe, TextPatch, hookimpl, trtllm
from forge.build.sources.source import Origin
from forge.client.types import Client, Request
from forge.errors import InferenceError, SourceError, StepError
from forge.machine.containers import Environments, Executor, Job
from forge.schema.values import Environment, Source, Toolchain
from forge.serve.server_types import Launch, Server
from forge.testing import PluginConformance, check_plugin

SOURCE = Source(hub="owner/model")
Maker = Callable[[Recipe, Toolchain], tuple[str, ...]]


def _module(**hooks: object) -> ModuleType:
    """forge_llama with some of its hooks replaced."""
    module = ModuleType("forge_mine")
    kept = {name: thing for name, thing in vars(forge_llama).items() if name.startswith("forge_")}
    vars(module).update({**kept, "FORGE_API": forge_llama.FORGE_API, **hooks})
    return module


def _converting(make: Maker) -> ModuleType:
    @hookimpl
    def forge_convert_commands(recipe: Recipe, toolchain: Toolchain) -> tuple[Command, ...]:
        return (Command(make(recipe, toolchain)),)

    return _module(forge_convert_commands=forge_convert_commands)


def _good(recipe: Recipe, toolchain: Toolchain) -> tuple[str, ...]:
    script = trtllm.script(toolchain, "mine")
    return ("python3", script, "--output_dir", trtllm.OUT, *trtllm.flags(recipe.convert.args))


@pytest.mark.parametrize("plugin", ["llama", "gemma", "t5", "draft-target", forge_llama, _converting(_good)])
def test_good_plugins_have_no_problems(plugin: ModuleType | str) -> None:
    assert check_plugin(plugin) == ()


BAD_COMMANDS: list[tuple[Maker, str]] = [
    (lambda recipe, tools: (*_good(recipe, tools), "/home/me/model"), "names '/home/me/model'"),
    (lambda recipe, tools: (*_good(recipe, tools), "--x=~/model"), "names '~/model'"),
    (lambda recipe, tools: (*_good(recipe, tools), "/forge/../etc"), "names '/forge/../etc'"),
    (lambda recipe, tools: (*_good(recipe, tools), "-- x"), "'-- x', which is no flag"),
    (lambda recipe, tools: (*_good(recipe, tools), "a\nb"), "control character"),
    (lambda recipe, tools: (*_good(recipe, tools), ""), "an empty word"),
    (lambda recipe, tools: ("bash", "-c", f"python3 x {trtllm.OUT}"), "goes through 'bash'"),
    (lambda recipe, tools: ("python3", "x", trtllm.OUT), "loses what convert.args says"),
    (lambda recipe, tools: ("python3", "x", *trtllm.flags(recipe.convert.args)), "never names /forge/out"),
    (
        lambda recipe, tools: ("python3", trtllm.OUT, *(f"--{k}" for k in recipe.convert.args), "--evil"),
        "lets it pass for a flag",
    ),
]


@pytest.mark.parametrize(("make", "told"), BAD_COMMANDS)
def test_a_command_that_would_not_do_is_told(make: Maker, told: str) -> None:
    problems = check_plugin(_converting(make))
    assert any(told in problem.what for problem in problems), problems


def test_an_answer_that_changes_from_call_to_call_is_told() -> None:
    calls = count()
    module = _converting(lambda recipe, tools: (*_good(recipe, tools), str(next(calls))))
    assert any("differently each time" in problem.what for problem in check_plugin(module))


def test_a_hook_that_changes_what_it_is_given_is_told() -> None:
    def greedy(recipe: Recipe, toolchain: Toolchain) -> tuple[str, ...]:
        recipe.convert.args["mine"] = True
        return _good(recipe, toolchain)

    assert any("changes what it is given" in problem.what for problem in check_plugin(_converting(greedy)))


def test_a_hook_without_its_marker_is_told() -> None:
    def forge_check() -> tuple[()]:
        return ()

    (problem,) = check_plugin(_module(forge_check=forge_check))
    assert problem.what == "forge_check lacks @forge.hookimpl, so nobody will ask it"


def test_a_misspelled_hook_is_told_with_the_one_meant() -> None:
    @hookimpl
    def forge_tokeniser() -> None: ...

    (problem,) = check_plugin(_module(forge_tokeniser=forge_tokeniser))
    assert "did you mean 'forge_tokenizer'?" in problem.what


def test_a_family_without_architectures_or_commands_is_told() -> None:
    @hookimpl
    def forge_architectures() -> tuple[str, ...]:
        return ()

    assert any("names none" in each.what for each in check_plugin(_module(forge_architectures=forge_architectures)))
    (problem,) = check_plugin(_module(forge_build_commands=None))
    assert problem.what == "a family answers forge_build_commands, and this one does not"


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        (TextPatch("/app/x.py", "", "y"), "what to find"),
        (TextPatch("/etc/passwd", "x", "y"), "neither a script of the image"),
        (JsonPatch("/app/config.json", {"a": 1}), "neither a script of the image"),
        (JsonPatch("../config.json", {"a": 1}), "neither a script of the image"),
        (JsonPatch("config.json", {}), "sets nothing"),
    ],
)
def test_a_patch_that_would_not_do_is_told(patch: Patch, told: str) -> None:
    @hookimpl
    def forge_patches() -> tuple[Patch, ...]:
        return (patch,)

    assert any(told in problem.what for problem in check_plugin(_module(forge_patches=forge_patches)))


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        (Engine("elsewhere"), "no command of the build leaves an engine in /forge/out/elsewhere"),
        (Engine("../x"), "leaves /forge"),
    ],
)
def test_an_engine_that_nobody_builds_is_told(engine: Engine, told: str) -> None:
    @hookimpl
    def forge_engines() -> tuple[Engine, ...]:
        return (engine,)

    assert any(told in problem.what for problem in check_plugin(_module(forge_engines=forge_engines)))


def test_the_class_for_pytest_fails_where_the_function_finds_something() -> None:
    class Mine(PluginConformance):
        plugin = _converting(lambda recipe, tools: (*_good(recipe, tools), "/home/me"))

    Mine().test_answers_have_the_promised_types()
    with pytest.raises(AssertionError, match="/home/me"):
        Mine().test_commands_name_constant_paths_only()


def test_the_fake_origin_brings_its_pin_and_notices_changes(tmp_path: Path) -> None:
    origin = FakeOrigin()
    port: Origin = origin
    pinned = port.pin(SOURCE, tmp_path)
    seen: list[tuple[int, int]] = []
    port.fetch(pinned, tmp_path / "a", lambda done, total: seen.append((done, total)))
    assert {file.name for file in (tmp_path / "a").iterdir()} == set(origin.files)
    assert port.read(pinned).architectures == ("LlamaForCausalLM",)
    assert seen[-1][0] == seen[-1][1] == sum(map(len, origin.files.values()))
    origin.files["config.json"] = b"{}"
    assert port.pin(SOURCE, tmp_path).revision != pinned.revision
    with pytest.raises(SourceError, match=r"config\.json is not what was pinned"):
        port.fetch(pinned, tmp_path / "b", lambda done, total: None)
    origin.down = True
    with pytest.raises(SourceError, match="out of reach"):
        port.pin(SOURCE, tmp_path)


def test_the_fake_executor_leaves_what_a_real_one_would(tmp_path: Path) -> None:
    executor = FakeExecutor(failing=frozenset({"quantize.py"}))
    port: Executor = executor
    lines: list[str] = []
    for argv, made in [
        (("trtllm-build",), "rank0.engine"),
        (("python3", "/app/convert_checkpoint.py"), "rank0.safetensors"),
        (("python3", "-m", "twin.gguf"), "model.safetensors"),
    ]:
        out = tmp_path / made
        port.run(Job(Command(argv), {"out": out}, tmp_path / "log"), lines.append)
        assert (out / made).is_file()
        assert json.loads((out / "config.json").read_text())
    failing = Job(Command(("python3", "/app/quantize.py")), {"out": tmp_path / "x"}, tmp_path / "log")
    with pytest.raises(StepError, match="exit code 1"):
        port.run(failing, lines.append)
    assert len(executor.ran) == len(lines) == 4


def test_the_fake_environment_lists_its_packages(tmp_path: Path) -> None:
    port: Environments = FakeEnvironments()
    port.make(Environment("3.11", "linux-x86_64", ("numpy<2",), ("bare==1",)), "/usr/bin/python3", tmp_path, print)
    assert (tmp_path / "packages.txt").read_text() == "numpy<2\nbare==1\n"


def test_the_fake_server_runs_until_it_is_stopped(tmp_path: Path) -> None:
    port: Server = FakeServer()
    launch = Launch(tmp_path, ("ensemble",), tmp_path, tmp_path)
    running = port.start(launch, lambda line: None)
    assert port.running() == (running,)
    assert "--load-model=ensemble" in port.command(launch).argv
    port.stop(running)
    assert port.running() == ()


def test_the_fake_model_echoes_word_by_word() -> None:
    port: Client = FakeClient()
    chunks = list(port.generate("here:1", Request("ensemble", "one two three", 2)))
    assert ("".join(chunk.text for chunk in chunks), chunks[-1].final) == ("one two", True)
    assert next(port.generate("here:1", Request("ensemble", "one two", 9, stream=False))).text == "one two"
    with pytest.raises(InferenceError, match="no model 'x'"):
        next(port.generate("here:1", Request("x", "y", 1)))


def test_the_kit_tells_a_row_hiding_every_failure() -> None:
    @hookimpl
    def forge_diagnoses() -> tuple[Diagnosis, ...]:
        return (Diagnosis("mine", ".*", "anything", "nothing"), Diagnosis("disk-full", "x", "{gone}", "z"))

    told = [problem.what for problem in check_plugin(_module(forge_diagnoses=forge_diagnoses))]
    assert any("mine: '.*' is found in every text" in what for what in told)
    assert any("disk-full: {gone} is no group" in what for what in told)
    assert any("disk-full is the name of a row of forge's own" in what for what in told)
