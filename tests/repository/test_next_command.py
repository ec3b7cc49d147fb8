"""After `add --rename-plain` was killed half way: whichever command comes next, it finds all of a repository."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_wiring import World
from forge.api.forge import Forge
from forge.errors import RepositoryError
from forge.repository import publish
from forge.schema.values import COMMON_ROLES, BuildOptions, Names, Ports
from forge.serve.server_types import Running
from store_makers import child

TWIN = """
name = "{name}"
[source]
hub = "acme/tiny"
[runtime]
kind = "twin"
"""

KILLED = """
import os, sys
from pathlib import Path
from fake_wiring import World
from forge.schema.values import BuildOptions
root, left = Path(sys.argv[1]), int(sys.argv[2])
shop, place = World().shop(root / "home"), root / "models"
shop.build([root / "a.toml"], repository=place)

def die(event, arguments):
    global left
    if event == "os.rename" and str(arguments[1]).startswith(str(place)) and "/.forge/" not in str(arguments[1]):
        left -= 1
        if left < 0:
            os._exit(9)

sys.addaudithook(die)
shop.add([root / "b.toml"], repository=place, options=BuildOptions(rename_plain=True))
"""


@pytest.fixture(scope="module", params=[1, 5, 9], ids="after {} renames".format)
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home, two recipes and a repository that is half a's plain names, half a's and b's prefixes."""
    root = tmp_path_factory.mktemp("killed")
    for name in "ab":
        (root / f"{name}.toml").write_text(TWIN.format(name=name))
    process = child(KILLED, root, request.param)
    said, errors = process.communicate()
    assert process.returncode == 9, said + errors
    assert (root / "models" / ".forge" / "journal.json").is_file()
    return root


@pytest.fixture
def root(killed: Path, tmp_path: Path) -> Path:
    """The same again, for one command: a copy."""
    return Path(shutil.copytree(killed, tmp_path / "copy", symlinks=True))


def require_whole(place: Path) -> None:
    """The manifest and the folders say the same, nothing is left of the publish, and it was finished."""
    held = json.loads((place / "forge.json").read_text())["models"]
    listed = {folder for model in held for folder in model["roles"].values()}
    assert {folder.name for folder in place.iterdir() if folder.is_dir()} == {*listed, "_assets"}
    assert {folder.name for folder in (place / "_assets").iterdir()} == {model["name"] for model in held}
    assert list(place.rglob(".forge-publish")) == []
    assert all(name.startswith(("a-", "b-")) for name in listed)


def _serve(shop: Forge, root: Path) -> None:
    running = shop.serve(root / "models")
    assert {name.partition("-")[0] for name in running.models} == {"a", "b"}


def _remove(shop: Forge, root: Path) -> None:
    shop.remove("a", root / "models")
    assert [model.name for model in shop.models(root / "models")] == ["b"]


def _list(shop: Forge, root: Path) -> None:
    assert [(model.name, model.prefix) for model in shop.models(root / "models")] == [("a", "a"), ("b", "b")]


COMMANDS: dict[str, Callable[[Forge, Path], object]] = {
    "build": lambda shop, root: shop.build([root / "a.toml", root / "b.toml"], repository=root / "models"),
    "add": lambda shop, root: shop.add([root / "b.toml"], repository=root / "models"),
    "add again": lambda shop, root: shop.add(
        [root / "b.toml"], repository=root / "models", options=BuildOptions(rename_plain=True)
    ),
    "remove": _remove,
    "list": _list,
    "check": lambda shop, root: shop.check(root / "models"),
    "serve": _serve,
    "manifest": lambda shop, root: shop.manifest(root / "models"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_next_command_finishes_what_was_killed(root: Path, world: World, command: str) -> None:
    COMMANDS[command](world.shop(root / "home"), root)
    require_whole(root / "models")


def _reload(shop: Forge, root: Path) -> None:
    served = shop.reload(root / "models").models
    assert {name.partition("-")[0] for name in served} == {"a", "b"}


def _ask(shop: Forge, root: Path) -> None:
    target = shop.target("a", root / "models")
    assert target.model.prefix == "a"


UNDER_A_SERVER = {"reload": _reload, "generate": _ask}


@pytest.fixture
def names(root: Path, world: World) -> set[str]:
    """What a server on the repository has: a's plain names, as before the publish that was killed under it."""
    plain = tuple(Names("", COMMON_ROLES).all().values())
    world.server.alive.append(Running(str(root / "models"), 1, 0.0, Ports(), plain, "", "fake-1", ""))
    return set(plain)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("command", UNDER_A_SERVER)
def test_the_next_command_finishes_what_was_killed_under_a_server(root: Path, world: World, command: str) -> None:
    UNDER_A_SERVER[command](world.shop(root / "home"), root)
    require_whole(root / "models")


def test_status_tells_of_the_server_and_finishes_what_was_killed(root: Path, world: World, names: set[str]) -> None:
    """It asks which model calls which, and that stands in the manifest; what is loaded stays as it is until a reload."""
    shop = world.shop(root / "home")
    assert {state.model for state in shop.care.states(shop.servers()) if state.answers} == names
    require_whole(root / "models")
    _reload(shop, root)


def test_who_may_only_read_is_told_what_it_will_hold(root: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))

    place = root / "models"
    before = sorted(path.relative_to(place) for path in place.rglob("*"))
    monkeypatch.setattr(publish, "FileLock", refuse)
    shop = world.shop(root / "home")
    _list(shop, root)
    with pytest.raises(RepositoryError, match="mounted read-only") as caught:
        shop.serve(place)
    assert "half way" in caught.value.hint
    assert sorted(path.relative_to(place) for path in place.rglob("*")) == before


@pytest.mark.parametrize("words", [("list",), ("check",), ("remove", "b"), ("remove", "a")], ids=" ".join)
def test_a_process_that_comes_after_the_kill_finishes_it(root: Path, words: tuple[str, ...]) -> None:
    _forge(root, *words, *(() if words[0] == "check" else ("--repository",)), root / "models")
    require_whole(root / "models")


def _forge(root: Path, *words: object) -> None:
    run = "import sys; from forge.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", run, *map(str, words)]
    environment = {**os.environ, "FORGE_HOME": str(root / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 8), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# -- a server that was never told


UNTOLD = """
import os, sys
from pathlib import Path
from fake_wiring import World
from forge.schema.values import BuildOptions
root = Path(sys.argv[1])
shop, place = World().shop(root / "home"), root / "models"

def die(event, arguments):
    if event == "os.rename" and str(arguments[1]).startswith(str(place)) and "/.forge/" not in str(arguments[1]):
        os._exit(9)

sys.addaudithook(die)
shop.build([root / "a.toml"], BuildOptions(prefixed=True), repository=place)
"""


@pytest.fixture
def served(world: World, tmp_path: Path) -> Forge:
    """A server on a and b, of which a has been published anew by a build that was killed, and finished by ``list``."""
    for name in "ab":
        (tmp_path / f"{name}.toml").write_text(TWIN.format(name=name))
    shop = world.shop(tmp_path / "home")
    shop.build([tmp_path / "a.toml", tmp_path / "b.toml"], repository=tmp_path / "models")
    shop.serve(tmp_path / "models")
    (tmp_path / "a.toml").write_text(TWIN.format(name="a") + "[build]\nmax_batch_size = 3\n")
    process = child(UNTOLD, tmp_path)
    said, errors = process.communicate()
    assert process.returncode == 9, said + errors
    assert [model.name for model in shop.models(tmp_path / "models")] == ["a", "b"]
    assert not (tmp_path / "models" / ".forge" / "journal.json").exists()
    world.server.told.clear()
    return shop


def told_of(world: World) -> set[str]:
    """The recipes whose models the server was told to load."""
    return {told.removeprefix("load ").partition("-")[0] for told in world.server.told if told.startswith("load ")}


@pytest.mark.parametrize("named", [("a",), ("b",), ("a", "b")], ids="build {}".format)
def test_a_build_tells_the_server_of_a_finished_publish(
    served: Forge, world: World, tmp_path: Path, named: tuple[str, ...]
) -> None:
    recipes = [tmp_path / f"{name}.toml" for name in named]
    served.build(recipes, repository=tmp_path / "models", options=BuildOptions(prefixed=True))
    assert told_of(world) == {"a"}
    world.server.told.clear()
    served.build(recipes, repository=tmp_path / "models", options=BuildOptions(prefixed=True))
    assert world.server.told == []


def test_a_load_failure_is_said_and_another_build_continues(served: Forge, world: World, tmp_path: Path) -> None:
    world.server.broken.add("a-tensorrt_llm")
    served.build([tmp_path / "b.toml"], repository=tmp_path / "models", options=BuildOptions(prefixed=True))
    assert any("a-tensorrt_llm" in event.text and "forge reload" in event.text for event in world.events)
    world.server.broken.clear()
    served.build([tmp_path / "b.toml"], repository=tmp_path / "models", options=BuildOptions(prefixed=True))
    assert "load a-tensorrt_llm" in world.server.told


def test_a_build_gives_up_names_a_killed_rename_left(root: Path, world: World, names: set[str]) -> None:
    COMMANDS["build"](world.shop(root / "home"), root)
    require_whole(root / "models")
    (running,) = world.server.alive
    assert names.isdisjoint(running.models)
    assert {name.partition("-")[0] for name in running.models} == {"a", "b"}
