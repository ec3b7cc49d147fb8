"""The twin's real server on a repository that changes under it: one model streams while another comes, changes and goes."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge.api.forge import Forge
from forge.errors import InferenceError, ServerError
from forge.schema.values import BuildOptions
from forge.serve.lookup import Target
from live_kit import PLAIN, recipe, say
from patience import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.network]


class Asking:
    """Asks a model again and again, each time for one stream, and keeps what was said."""

    def __init__(self, shop: Forge, target: Target) -> None:
        self.said: list[str] = []
        self.failed: list[str] = []
        self._shop, self._target = shop, target
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join(60)

    def _ask(self) -> None:
        while not self._enough.is_set():
            try:
                self.said.append(say(self._shop, self._target, 40))
            except InferenceError as error:
                self.failed.append(str(error))


@pytest.fixture
def place(shop: Forge, tmp_path: Path) -> Iterator[Path]:
    """A repository with the model one, which is being served."""
    shop.add([recipe(tmp_path, "one")], repository=tmp_path / "models")
    running = shop.serve(tmp_path / "models", free_ports())
    yield tmp_path / "models"
    shop.stop(running)


def test_one_model_streams_while_another_is_added_exchanged_and_removed(shop: Forge, place: Path, tmp_path: Path) -> None:
    with Asking(shop, shop.target("one", place)) as asking:
        shop.add([recipe(tmp_path, "two")], repository=place)
        two = shop.target("two", place)
        first = say(shop, two)
        shop.add([recipe(tmp_path, "two", batch=3)], repository=place)
        assert say(shop, two) == first

        broken = recipe(tmp_path, "two", '[serve.parameters.tensorrt_llm]\ngpt_model_path = "/nowhere"\n')
        with pytest.raises(ServerError, match=r"'two-tensorrt_llm' did not load: .*/nowhere") as caught:
            shop.add([broken], repository=place)
        assert "the repository has what it had before, and so has the server" in caught.value.hint
        assert "/nowhere" not in (place / "two-tensorrt_llm" / "config.pbtxt").read_text()
        assert say(shop, two) == first

        shop.remove("two", place)
        with pytest.raises(InferenceError, match=r"unknown|offers no|not found"):
            say(shop, two)
        assert len(shop.server(place).models) == 5
    assert asking.failed == []
    assert len(asking.said) > 3
    assert len(set(asking.said)) == 1


def test_a_plain_model_keeps_its_names_until_the_newcomer_answers(shop: Forge, tmp_path: Path) -> None:
    place = tmp_path / "models"
    shop.build([recipe(tmp_path, "one")], repository=place)
    running = shop.serve(place, free_ports())
    try:
        one = shop.target("one", place)
        broken = recipe(tmp_path, "two", '[serve.parameters.tensorrt_llm]\ngpt_model_path = "/nowhere"\n')
        with Asking(shop, one) as asking:
            with pytest.raises(ServerError, match=r"'two-tensorrt_llm' did not load: .*/nowhere") as caught:
                shop.add([broken], repository=place, options=BuildOptions(rename_plain=True))
            assert "the repository has what it had before, and so has the server" in caught.value.hint
            assert {each.parent.name for each in place.glob("*/config.pbtxt")} == set(shop.server(place).models) == PLAIN
            first = say(shop, one, 40)
        assert (asking.failed, set(asking.said)) == ([], {first})
        shop.add([recipe(tmp_path, "two")], repository=place, options=BuildOptions(rename_plain=True))
        assert say(shop, shop.target("one", place), 40) == first
        assert say(shop, shop.target("two", place))
        assert len(shop.server(place).models) == 10
    finally:
        shop.stop(running)
