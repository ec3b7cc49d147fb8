"""A publish that is killed while a real Triton serves the repository: the next command, whichever, ends it, and what is on
the disk is what answers."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from forge.api.forge import Forge
from forge.cli import main
from forge.repository import publish
from live_kit import PLAIN, recipe, say
from patience import PATIENCE, free_ports
from store_makers import child

pytestmark = [pytest.mark.slow, pytest.mark.network]

KILLED = """
import os, sys
from pathlib import Path
from forge.api.forge import Forge
home, place, verb, wanted, after, spared = sys.argv[1:]
shop, left = Forge(Path(home), dict(os.environ)), int(spared)

def die(event, arguments):
    global left
    if event == "os.rename" and after in str(arguments[1]) and "/.forge/in" not in str(arguments[1]):
        left -= 1
        if left < 0:
            os._exit(9)

sys.addaudithook(die)
shop.add([wanted], repository=place) if verb == "add" else shop.remove(wanted, place)
"""
"""Dies at a rename onto a path that holds ``after``, some of them spared: what a server has is noted under servers."""

BEFORE_IT_BEGINS = ("/.forge/journal.json", 0)
AMONG_THE_FOLDERS = ("/two-", 2)
BEFORE_THE_MANIFEST = ("/forge.json", 0)
BEFORE_IT_IS_NOTED = ("/servers/", 2)


class Room:
    """One server, and a repository that it serves."""

    def __init__(self, shop: Forge, folder: Path) -> None:
        self.shop, self.place = shop, folder / "models"
        self.one, self.two = recipe(folder, "one"), recipe(folder, "two")
        shop.add([self.one], repository=self.place)
        self.running = shop.serve(self.place, free_ports())
        self.folders = {f"{name}-{folder}" for name in ("one", "two") for folder in PLAIN}
        self.said = say(shop, shop.target("one", self.place))

    def killed(self, verb: str, at: tuple[str, int]) -> None:
        """``forge add`` of the recipe two, or ``forge remove`` of its model, killed there."""
        process = child(KILLED, self.shop.home, self.place, verb, self.two if verb == "add" else "two", *at)
        told, errors = process.communicate()
        assert process.returncode == 9, told + errors

    def forge(self, *words: object) -> str:
        told = CliRunner().invoke(main, [*map(str, words)], catch_exceptions=False)
        assert told.exit_code == 0, told.output
        return told.stdout

    def ready(self, model: str) -> bool:
        """Whether the server has it, on the disk or not: its list of models knows only what is there."""
        ports = self.running.ports
        try:
            with urllib.request.urlopen(f"http://{ports.host}:{ports.http}/v2/models/{model}/ready", timeout=PATIENCE):
                return True
        except urllib.error.HTTPError:
            return False

    def require(self, *names: str) -> None:
        """The disk holds these, nothing is left of a publish, and the server has their models, no others, and answers."""
        held = json.loads((self.place / "forge.json").read_text())["models"]
        assert [model["name"] for model in held] == [*names]
        folders = {folder for model in held for folder in model["roles"].values()}
        assert {config.parent.name for config in self.place.glob("*/config.pbtxt")} == folders
        assert not list(self.place.rglob(".forge-publish"))
        assert not (self.place / ".forge").exists()
        assert set(self.shop.server(self.place).models) == folders
        assert {folder for folder in self.folders if self.ready(folder)} == folders
        for name in names:
            assert say(self.shop, self.shop.target(name, self.place))
        assert say(self.shop, self.shop.target("one", self.place)) == self.said


@pytest.fixture(scope="module")
def served(shop: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    room = Room(shop, tmp_path_factory.mktemp("killed"))
    yield room
    shop.stop(room.running)


@pytest.fixture
def room(served: Room, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """The server of the module, with the model one alone, before and afterwards."""
    monkeypatch.setenv("FORGE_HOME", str(served.shop.home))
    yield served
    if publish.inventory(served.place).find("two"):
        served.shop.remove("two", served.place)


def test_what_had_not_begun_is_undone_by_whoever_looks(room: Room) -> None:
    room.killed("add", BEFORE_IT_BEGINS)
    assert [each["name"] for each in json.loads(room.forge("list", "--repository", room.place, "--json"))["models"]] == ["one"]
    room.require("one")


def test_status_finishes_what_began_and_reload_takes_it_in(room: Room) -> None:
    room.killed("add", AMONG_THE_FOLDERS)
    room.forge("status")
    assert [model.name for model in publish.inventory(room.place).models] == ["one", "two"]
    assert say(room.shop, room.shop.target("one", room.place)) == room.said
    room.forge("reload", "--repository", room.place)
    room.require("one", "two")


def test_what_lacks_its_manifest_is_finished_by_the_same_again(room: Room) -> None:
    room.killed("add", BEFORE_THE_MANIFEST)
    room.forge("add", room.two, "--repository", room.place)
    room.require("one", "two")


def test_an_unnoted_load_of_the_server_goes_too(room: Room) -> None:
    room.killed("add", BEFORE_IT_IS_NOTED)
    room.forge("remove", "two", "--repository", room.place)
    room.require("one")


def test_an_unnoted_unload_is_taken_out_by_a_repeat(room: Room) -> None:
    room.shop.add([room.two], repository=room.place)
    room.killed("remove", BEFORE_IT_IS_NOTED)
    room.forge("remove", "two", "--repository", room.place)
    room.require("one")
