"""`forge fetch`, `forge show` and `forge ps`: what is brought, what stands behind a model, and what it uses."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fake_wiring import World
from forge.api.forge import Forge
from forge.cli import main
from forge.cli.text import age
from forge.errors import InferenceError, Problem, RepositoryError, ServerError
from forge.machine import process_memory
from forge.schema.values import BuildOptions, RuntimeKind
from tiny_served import Tiny

RECIPE = (
    '\nname = "tiny"\n[source]\nhub = "acme/tiny"\n[build]\nmax_input_len = 64\nmax_seq_len = 128\n[runtime]\nkind = "twin"\n'
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def over_fakes(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


@pytest.fixture
def recipe(here: Path) -> str:
    (here / "tiny.toml").write_text(RECIPE)
    return "tiny.toml"


def test_fetch_brings_the_checkpoint_alone_and_needs_no_docker(over_fakes: Forge, world: World, recipe: str) -> None:
    world.containers.problems = (Problem("docker", "no daemon answers"),)
    (held,) = over_fakes.fetch([recipe], BuildOptions(RuntimeKind.ENGINE))
    assert held.name == "tiny: model"
    assert (held.path / "model.safetensors").is_file()
    assert world.made() == ["tiny: model"]
    over_fakes.fetch([recipe])
    assert world.origin.fetches == 1


def test_a_served_model_shows_its_source_limits_and_keys(over_fakes: Forge, world: World, recipe: str) -> None:
    target = over_fakes.run(recipe)
    shown = over_fakes.exhibit.show("tiny")
    assert (shown.source.name, len(shown.source.revision)) == ("acme/tiny", 40)
    assert shown.address == target.address
    assert shown.built["max_seq_len"] == 128
    assert shown.keys["tiny: entry"] == target.model.entry
    assert shown.use is not None
    assert shown.use.host == 5 * 10**8  # five models of the fake's


def test_a_model_that_nobody_serves_is_shown_from_its_repository(over_fakes: Forge, recipe: str) -> None:
    over_fakes.build([recipe])
    shown = over_fakes.exhibit.show("tiny")
    assert (shown.address, shown.tensors, shown.use) == ("", None, None)
    assert shown.models["ensemble"] == "ensemble"
    with pytest.raises(ServerError):
        over_fakes.exhibit.show("nobody")
    Path(over_fakes.settings.repository, "forge.json").write_text("{")
    with pytest.raises(RepositoryError, match="the manifest cannot be read"):
        over_fakes.exhibit.show("tiny")


@pytest.mark.parametrize("runtime", [RuntimeKind.VLLM, RuntimeKind.LLMAPI])
def test_what_vllm_and_llmapi_are_told_is_what_was_built(over_fakes: Forge, recipe: str, runtime: RuntimeKind) -> None:
    over_fakes.build([recipe], BuildOptions(runtime))
    built = over_fakes.exhibit.show("tiny").built
    assert (built["max_seq_len"], built["max_batch_size"]) == (128, 8)


def test_the_recipe_is_shown_with_whether_it_still_holds(over_fakes: Forge, recipe: str, here: Path) -> None:
    def state() -> str:
        shown = over_fakes.exhibit.show("tiny").recipe
        assert shown is not None
        assert shown.file == str(here / "tiny.toml")
        return shown.state

    over_fakes.build([recipe])
    (before,) = over_fakes.manifest("model-repository").models
    assert state() == "unchanged"
    (here / recipe).write_text(f"{RECIPE}# said of it\n")
    assert state() == "changed"
    over_fakes.build([recipe])
    assert state() == "unchanged"
    (after,) = over_fakes.manifest("model-repository").models
    assert after.keys == before.keys
    assert after.recipe != before.recipe
    (here / recipe).unlink()
    assert state() == "gone"


def test_a_strangers_path_is_shown_in_one_line(
    over_fakes: Forge, recipe: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_fakes.build([recipe])
    manifest = here / "model-repository" / "forge.json"
    manifest.write_text(manifest.read_text().replace(str(here / recipe), f"{here}/a\\n\\u001b[2J.toml"))

    def itself(*_: object, **__: object) -> Forge:
        return over_fakes

    monkeypatch.setattr(Forge, "here", itself)
    done = CliRunner().invoke(main, ["show", "tiny"])
    assert f"  recipe      {here}/a\\n\\x1b[2J.toml, which is there no more" in done.stdout.splitlines()[1]


def test_what_the_store_has_forgotten_is_not_made_up(over_fakes: Forge, recipe: str, here: Path) -> None:
    over_fakes.build([recipe])
    (here / "home" / "store").rename(here / "gone")
    assert over_fakes.exhibit.show("tiny").source.name == ""


def test_each_servers_use_stands_beside_that_of_its_models(over_fakes: Forge, recipe: str, here: Path) -> None:
    assert over_fakes.exhibit.uses() == ()
    over_fakes.run(recipe)
    (server,) = over_fakes.exhibit.uses()
    assert (server.seconds, server.host, server.gpu) == (60.0, 10**9, None)
    (model,) = server.models
    assert (model.name, model.requests, model.failed) == ("tiny", 4, 0)  # bls and ensemble, which clients ask


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.4, "0 s"), (61, "1 min 1 s"), (3600, "1 h"), (90061, "1 d 1 h")],
)
def test_a_time_is_told_in_its_two_largest_units(seconds: float | None, text: str) -> None:
    assert age(seconds) == text


def test_an_nvidia_smi_that_does_not_say_gives_no_figures(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '17, 2048\\n17, 1\\n18, [N/A]\\nnothing\\n'\n")
    program.chmod(0o755)
    assert process_memory.on_gpus({"PATH": f"{tmp_path}:/usr/bin:/bin"}) == {17: 2049 << 20}
    program.write_text("#!/bin/sh\nexit 9\n")
    assert process_memory.on_gpus({"PATH": f"{tmp_path}:/usr/bin:/bin"}) == {}
    assert process_memory.on_gpus({"PATH": ""}) == {}


@pytest.mark.slow
def test_a_real_server_says_what_it_holds_and_counts_requests(tiny: Tiny, home: Path) -> None:
    def forge(*words: str) -> str:
        done = CliRunner().invoke(main, list(words), env={"FORGE_HOME": str(home)})
        assert done.exit_code == 0, done.output
        return done.stdout

    def use() -> dict[str, int]:
        servers = json.loads(forge("ps", "--json"))["servers"]
        return next(model for server in servers for model in server["models"] if model["address"] == tiny.address)

    before = use()
    forge("generate", "tiny", "hello", "--repository", str(tiny.target.repository))
    after = use()
    assert after["requests"] == before["requests"] + 1
    assert after["failed"] == before["failed"]
    assert after["host"] > 50 * 10**6
    assert after["seconds"] > before["seconds"] > 0
    told = forge("show", "tiny", "--repository", str(tiny.target.repository))
    assert "text_input" in told
    assert f"recipe      {tiny.recipe} (blake3 " in told
    assert tiny.address in told
    assert "tiny  " in forge("ps")


def test_a_model_neither_served_nor_in_repositories_is_an_error(over_fakes: Forge, recipe: str) -> None:
    over_fakes.run(recipe)
    with pytest.raises(InferenceError, match="nobody"):
        over_fakes.exhibit.show("nobody")
