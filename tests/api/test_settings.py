"""The config file and FORGE_* variables: what wins, where a value comes from, and what is refused."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fake_wiring import World
from forge.api.forge import Forge
from forge.cli import main
from forge.errors import ConfigError
from forge.schema.values import Ports
from forge.settings import VARIABLES, home, read


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a person's config file stands; no variable says anything."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    file = tmp_path / "config" / "forge" / "config.toml"
    file.parent.mkdir(parents=True)
    return file


def forge(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def shown() -> dict[str, tuple[object, str]]:
    found = json.loads(forge("config", "show", "--json").stdout)["settings"]
    return {each["key"]: (each["value"], each["source"]) for each in found}


def test_without_a_file_and_variables_everything_is_forges_own_default() -> None:
    assert {source for _, source in shown().values()} == {"default"}
    assert shown()["ports.http"] == (8000, "default")


def test_a_variable_beats_the_file_and_values_say_their_origin(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('jobs = 3\nrepository = "models"\n[ports]\nhttp = 9000\n')
    monkeypatch.setenv("FORGE_JOBS", "5")
    monkeypatch.setenv("FORGE_PORTS_GRPC", "9001")
    found = shown()
    assert found["jobs"] == (5, "FORGE_JOBS")
    assert found["repository"] == ("models", str(config))
    assert (found["ports.http"], found["ports.grpc"]) == ((9000, str(config)), (9001, "FORGE_PORTS_GRPC"))


def test_forge_home_beats_the_files_home_and_takes_any_path(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('home = "store"\n')
    assert home({}) == config.parent / "store"
    assert home({"FORGE_HOME": "-odd"}) == Path("-odd").absolute()
    monkeypatch.setenv("FORGE_HOME", "/data/forge")
    assert shown()["home"] == ("/data/forge", "FORGE_HOME")


def test_an_unknown_key_is_refused_with_what_was_meant(config: Path) -> None:
    config.write_text("job = 3\n[ports]\nhtttp = 1\n")
    done = forge("config", "show")
    assert done.exit_code == ConfigError.exit_code
    assert f"{config}: job: unknown key\n    did you mean 'jobs'?" in done.stderr
    assert f"{config}: ports.htttp: unknown key\n    did you mean 'http'?" in done.stderr


@pytest.mark.parametrize("text", ["jobs = 0", 'jobs = "many"', "ports = 3", "jobs =", "[ports]\nhttp = 8001"])
def test_every_verb_refuses_a_wrong_file_without_a_traceback(config: Path, text: str) -> None:
    config.write_text(text)
    done = forge("list", "--json")
    assert done.exit_code == ConfigError.exit_code
    assert json.loads(done.stdout)["error"]["problems"][0]["where"].startswith(str(config))


def test_a_variable_that_says_nonsense_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_JOBS", "many")
    assert "FORGE_JOBS: found text 'many'; allowed: a whole number" in forge("list").stderr


def test_a_wrong_list_item_is_blamed_on_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_REMOTE_PUSH", "engine,engines")
    assert "error: FORGE_REMOTE_PUSH: found text 'engines'; allowed: one of checkpoint," in forge("list").stderr


@pytest.mark.parametrize(
    ("text", "allowed"),
    [('home = ["a"]', "a path that does not begin with '-'\n"), ('[remote]\nurl = "file://shared"', "file:///, http://")],
)
def test_what_is_allowed_is_said_whole(config: Path, text: str, allowed: str) -> None:
    config.write_text(text)
    assert allowed in forge("list").stderr


def test_verbs_mean_the_repository_of_the_file(config: Path, tmp_path: Path) -> None:
    config.write_text(f'repository = "{tmp_path / "models"}"\n')
    assert forge("list").stdout.strip() == f"nothing was published into {tmp_path / 'models'}"
    assert f"{tmp_path / 'models'}" in forge("serve").stderr


def test_the_python_api_follows_the_file_and_arguments_win(config: Path, tmp_path: Path) -> None:
    config.write_text(f'home = "{tmp_path / "home"}"\njobs = 3\n')
    assert (Forge.here().home, Forge.here().settings.jobs) == (tmp_path / "home", 3)
    assert read({"FORGE_JOBS": "4"}).jobs == 4


TWIN = 'name = "tiny"\n[source]\nhub = "acme/tiny"\n[runtime]\nkind = "twin"\n'
DEPLOYED = 'recipes = ["tiny.toml"]\nrepository = "models"\n[ports]\nhttp = 9100\ngrpc = 9101\n'


@pytest.mark.parametrize(("words", "http"), [((), 9100), (("--http-port", "9400"), 9400)])
def test_options_then_variables_a_deployment_and_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch, world: World, tmp_path: Path, words: tuple[str, ...], http: int
) -> None:
    config.write_text("[ports]\nhttp = 9200\ngrpc = 9201\nmetrics = 9202\n")
    monkeypatch.setenv("FORGE_PORTS_GRPC", "9301")

    def here(*_: object, **__: object) -> Forge:
        return world.shop(tmp_path / "home", settings=read(os.environ))

    monkeypatch.setattr(Forge, "here", here)
    (tmp_path / "tiny.toml").write_text(TWIN)
    (tmp_path / "deployed.toml").write_text(DEPLOYED)
    world.shop(tmp_path / "home").build([tmp_path / "deployed.toml"])
    done = forge("serve", str(tmp_path / "deployed.toml"), "--detach", *words)
    assert done.exit_code == 0, done.output
    assert world.server.alive[0].ports == Ports(http, 9301, 9202)
