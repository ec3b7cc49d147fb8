"""A build that stands is known by a note; whatever the note was made from, when it changes the note says nothing."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import forge_llama
from fake_wiring import World
from forge.api.forge import Forge
from forge.build.noted import BuildNotes
from forge.build.unchanged import DoneBuild, Notes, Question, look, question
from forge.store.store import Store

TWIN = 'name = "tiny"\nfamily = "llama"\n[source]\nhub = "acme/tiny"\n[runtime]\nkind = "twin"\n'
OPTIONS = {"runtime": None, "locked": False, "prefixed": False, "inside": False}


class Place:
    """A locked recipe, built once into a repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "tiny.toml"
        self.recipe.write_text(TWIN)
        self.lock = folder / "tiny.toml.lock"
        self.repository = folder / "models"
        self.world = World()
        self.shop: Forge = self.world.shop(folder / "home")

    def build(self) -> None:
        self.shop.build([self.recipe], repository=self.repository)

    def asked(self, **other: object) -> Question:
        return question([self.recipe], self.repository, os.getcwd(), OPTIONS | other)

    def found(self) -> DoneBuild | None:
        return Notes(self.folder / "home").find(self.asked())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.shop.lock(made.recipe)
    made.build()
    return made


def test_a_standing_build_is_found_with_what_it_stands_on(place: Place) -> None:
    done = place.found()
    assert done
    assert done.repository == str(place.repository)
    assert [(model.name, model.roles["tensorrt_llm"]) for model in done.models] == [("tiny", "tensorrt_llm")]
    plan = place.shop.plan([place.recipe])
    assert {Path(step.folder).name for step in done.steps} == {step.key for step in plan.steps}


def _other_recipe(place: Place) -> None:
    place.recipe.write_text(TWIN + "[serve]\nstream = false\n")


def _moved_lock(place: Place) -> None:
    place.world.origin.files["generation_config.json"] = b'{"moved": 1}'
    assert place.shop.lock(place.recipe, upgrade=True)[1]


def _no_lock(place: Place) -> None:
    place.lock.unlink()


def _lost_artifact(place: Place) -> None:
    entry = place.shop.plan([place.recipe]).entries[0].step.key
    next((place.folder / "home/store/artifacts").rglob(f"{entry}/manifest.json")).unlink()


def _edited_config(place: Place) -> None:
    config = place.repository / "preprocessing/config.pbtxt"
    config.write_text(config.read_text() + "\n")


def _replaced_weight(place: Place) -> None:
    weight = place.repository / "_assets/tiny/engines/model.safetensors"
    content = weight.read_bytes()
    weight.unlink()
    weight.write_bytes(content)


def _lost_file(place: Place) -> None:
    (place.repository / "ensemble/config.pbtxt").unlink()


def _other_manifest(place: Place) -> None:
    (place.repository / "forge.json").write_text("{}")


def _a_server(place: Place) -> None:
    (place.folder / "home/servers").mkdir(exist_ok=True)
    (place.folder / "home/servers/one.json").write_text("{}")


CHANGES: list[Callable[[Place], None]] = [
    *(_other_recipe, _moved_lock, _no_lock, _lost_artifact, _edited_config, _replaced_weight, _lost_file, _other_manifest),
    _a_server,
]


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
def test_what_has_changed_is_looked_at_anew(place: Place, change: Callable[[Place], None]) -> None:
    change(place)
    assert place.found() is None


def test_another_wish_is_another_question(place: Place) -> None:
    notes = Notes(place.folder / "home")
    for other in ({"runtime": "engine"}, {"locked": True}, {"prefixed": True}, {"inside": True}):
        assert notes.find(place.asked(**other)) is None
    assert notes.find(question([place.recipe], None, os.getcwd(), OPTIONS)) is None


def test_changed_code_and_a_new_distribution_void_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, site = tmp_path / "plugin", tmp_path / "site"
    for folder in (code, site, tmp_path / "models"):
        folder.mkdir()
    (code / "__init__.py").write_text("A = 1\n")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    notes, asked = Notes(tmp_path / "home"), question(["a"], "b", "/", {})

    def note() -> None:
        notes.keep(asked, look([], [code]), DoneBuild(str(tmp_path / "models"), (), ()))
        assert notes.find(asked)

    note()
    (code / "__init__.py").write_text("A = 22\n")
    assert notes.find(asked) is None
    note()
    (code / "more.py").write_text("")
    assert notes.find(asked) is None
    note()
    (site / "other-1.0.dist-info").mkdir()
    assert notes.find(asked) is None


def test_the_code_looked_at_is_forges_and_every_plugins(place: Place) -> None:
    store = Store(place.folder / "home/store", clock=lambda: 1.0)
    inputs = BuildNotes(Notes(place.folder / "home"), store).before(place.shop.joint([place.recipe]))
    assert str(Path(forge_llama.__file__)) in inputs.code
    assert any(path.endswith("forge/plan/twin.py") for path in inputs.code)
    assert set(inputs.texts) == {str(place.recipe), str(place.lock)}


@pytest.mark.parametrize(
    "text",
    [TWIN, TWIN.replace('hub = "acme/tiny"', 'path = "there"'), TWIN.replace('"twin"', '"engine"\ngpus = "none"')],
    ids=["unlocked", "a folder", "an image"],
)
def test_what_texts_do_not_say_is_never_noted(tmp_path: Path, text: str) -> None:
    place = Place(tmp_path)
    place.recipe.write_text(text)
    place.build()
    assert place.found() is None


def test_a_note_written_over_a_changed_plan_is_void(place: Place) -> None:
    """Looked at before planning: what changes while a build goes on was not what it was planned from."""
    notes = Notes(place.folder / "home")
    inputs = look([place.recipe], [])
    place.recipe.write_text(TWIN + "# changed meanwhile\n")
    done = DoneBuild(str(place.repository), (), ())
    notes.keep(place.asked(), inputs, done)
    assert notes.find(place.asked()) is None


def test_a_standing_build_without_a_note_writes_no_manifest_again(place: Place) -> None:
    file = place.repository / "forge.json"
    before = file.stat()
    for note in (place.folder / "home/unchanged").iterdir():
        note.unlink()
    assert place.found() is None
    place.build()
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
