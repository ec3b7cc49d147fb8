"""forge in an event loop: what its verbs give and raise, what they tell on the way, and how they are ended."""

import asyncio
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import verify_kit
from fake_wiring import ENGINE, World
from fakes import FakeOrigin
from forge.api.async_forge import AsyncForge
from forge.api.forge import Forge
from forge.errors import RecipeError
from forge.events import Progress
from forge.machine.interrupt import Halt
from forge.schema.values import Pinned
from patience import free_ports


class Line(FakeOrigin):
    """A slow line: what is fetched by it comes when it is ``open``, and never once it is hung up."""

    def __init__(self, halt: Callable[[], Halt]) -> None:
        super().__init__()
        self.asked, self.open, self.hung_up = threading.Event(), threading.Event(), False
        self._halt = halt

    def _hang_up(self) -> None:
        self.hung_up = True
        self.open.set()

    def fetch(self, pinned: Pinned, into: Path, progress: Progress) -> None:
        with self._halt().ending(self._hang_up):
            self.asked.set()
            self.open.wait()
        super().fetch(pinned, into, progress)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(ENGINE)
    return file


@pytest.fixture
def forge(world: World, tmp_path: Path) -> AsyncForge:
    return AsyncForge(partial(world.shop, tmp_path / "home"))


def test_a_build_gives_its_result_and_tells_of_each_step(forge: AsyncForge, recipe: Path, tmp_path: Path) -> None:
    async def build() -> list[str]:
        work = forge.build([recipe], repository=tmp_path / "models")
        told = [event async for event in work]
        built = await work
        assert [model.name for model in built.models] == ["tiny"]
        assert told == [event async for event in work], "who comes late hears it too"
        return [event.step for event in told if event.kind == "made"]

    assert asyncio.run(build())[-1] == "tiny: entry"


def test_lines_of_programs_are_told_only_to_who_asks(forge: AsyncForge, recipe: Path, tmp_path: Path) -> None:
    async def build() -> tuple[set[str], set[str]]:
        work = forge.build([recipe], repository=tmp_path / "models")
        return {event.kind async for event in work}, {event.kind async for event in work.logs()}

    told, logged = asyncio.run(build())
    assert "log" not in told
    assert logged - told == {"log"}


def test_what_fails_is_raised_where_it_is_awaited(forge: AsyncForge, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("name = 3")

    async def build() -> None:
        await forge.build([wrong], repository=tmp_path / "models")

    with pytest.raises(RecipeError, match="name"):
        asyncio.run(build())


def test_a_cancelled_task_ends_its_build_and_no_other(forge: AsyncForge, world: World, recipe: Path, tmp_path: Path) -> None:
    async def cancel() -> None:
        world.origin = line = Line(lambda: world.wiring[0].tools.halt)
        work = forge.build([recipe], repository=tmp_path / "models")
        waiting = asyncio.ensure_future(work)
        while not line.asked.is_set():
            await asyncio.sleep(0.01)
        findings = forge.examine()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert line.hung_up
        assert not (tmp_path / "models").exists()
        assert await findings is not None

    asyncio.run(cancel())


@pytest.mark.slow
def test_a_server_whose_start_is_cancelled_is_stopped(home: Path, tmp_path: Path) -> None:
    verify_kit.checkpoint(tmp_path / "checkpoint")
    recipe = verify_kit.recipe(tmp_path, "tiny")
    forge = AsyncForge(lambda listener: Forge(home, dict(os.environ), listener))
    place = tmp_path / "models"

    async def serve() -> None:
        await forge.build([recipe], repository=place)
        work = forge.serve(place, free_ports())
        async for event in work.logs():
            if event.kind == "log":  # Triton speaks: it is there
                work.cancel()
                break
        with pytest.raises(asyncio.CancelledError):
            await work
        assert str(place) not in {running.repository for running in await forge.servers()}
        running = await forge.serve(place, free_ports())
        assert (await forge.target("tiny", place)).address.endswith(str(running.ports.grpc))
        await forge.stop(running)
        assert str(place) not in {running.repository for running in await forge.servers()}

    asyncio.run(serve())
