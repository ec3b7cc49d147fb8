"""Steps in containers: what they promise is the container run's to keep, and what a pull is at is told as it goes."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fake_containers import FakeContainers
from fake_wiring import World
from forge.build.in_containers import Contained
from forge.errors import SourceError
from forge.events import Event
from forge.machine.containers import ImageFacts, Progress
from forge.plan.steps import MakeImage, Run, Step
from forge.schema.values import Command, Requirements

IMAGE = Step("image", MakeImage("llama", "sha256:1", Requirements(), reference="acme/base:1"))
RECIPE = """
name = "tiny"
{family}
[source]
hub = "acme/tiny"
[runtime]
kind = "engine"
gpus = "none"
"""


@dataclass
class Pulling(FakeContainers):
    """An engine whose image comes in two pieces."""

    here: bool = False
    steps: tuple[int, ...] = field(default=(3, 7))

    def hold(self, reference: str, progress: Progress) -> ImageFacts:
        for done in self.steps:
            progress(done, self.steps[-1])
        return super().hold(reference, progress)


def test_only_the_last_command_keeps_what_the_step_promises(tmp_path: Path) -> None:
    engine = FakeContainers()
    commands = (Command(("one",)), Command(("two",)))
    step = Step("engine", Run(commands), (("image", IMAGE),), promises=("config.json",))
    assert isinstance(step.action, Run)
    Contained(engine, tmp_path / "logs").run(step, step.action, {"image": tmp_path}, tmp_path, lambda _: None)
    assert [run.promised for run in engine.ran] == [(), ("config.json",)]


def test_how_far_a_pull_is_is_told(tmp_path: Path) -> None:
    told: list[Event] = []
    assert isinstance(IMAGE.action, MakeImage)
    Contained(Pulling(), tmp_path / "logs").make_image(IMAGE, IMAGE.action, tmp_path, told.append)
    assert [(event.step, event.done, event.total) for event in told if event.kind == "progress"][:2] == [
        ("image", 3, 7),
        ("image", 7, 7),
    ]


def test_a_named_family_shows_its_dockerfile_without_the_model(tmp_path: Path) -> None:
    world = World()
    world.origin.down = True
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(family='family = "llama"'))
    assert "sentencepiece" in world.shop(tmp_path / "home").dockerfile(recipe)
    recipe.write_text(RECIPE.format(family=""))
    with pytest.raises(SourceError, match="out of reach"):
        world.shop(tmp_path / "home").dockerfile(recipe)
