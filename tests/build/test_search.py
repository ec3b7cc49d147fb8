"""`forge search`: what the hub's list says of its models, which family serves each, and whether its weights fit."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from fake_wiring import World
from fakes import FakeOrigin
from forge.api.forge import Forge
from forge.build.sources.hub import ATTEMPTS, NETWORK, HubOrigin
from forge.build.sources.source import Offer
from forge.errors import SourceError
from forge.schema.values import Gpu
from loopback_hub import LoopbackHub, Repository, loopback_hub

GEMMA: dict[str, object] = {
    "config": {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"},
    "downloads": 900,
    "gated": "manual",
    "safetensors": {"parameters": {"BF16": 2_506_172_416}, "total": 2_506_172_416},
}


def origin(hub: LoopbackHub, home: Path) -> HubOrigin:
    return HubOrigin(home, {"HF_ENDPOINT": hub.url, "HOME": str(home)})


def test_the_hubs_list_is_one_request_most_fetched_first(tmp_path: Path) -> None:
    with loopback_hub() as hub:
        hub.repositories["acme/gemma-plain"] = Repository(about={"downloads": 3})
        hub.repositories["google/gemma-2b-it"] = Repository(about=GEMMA)
        hub.repositories["acme/other"] = Repository(about=GEMMA)
        found = origin(hub, tmp_path).search("gemma", 5)
        assert found == (
            Offer("google/gemma-2b-it", ("GemmaForCausalLM",), {"BF16": 2_506_172_416}, gated=True, downloads=900),
            Offer("acme/gemma-plain", downloads=3),
        )
        assert len(hub.requests) == 1
        assert len(origin(hub, tmp_path).search("gemma", 1)) == 1


def test_a_hub_that_is_away_is_said(tmp_path: Path) -> None:
    with loopback_hub() as hub:
        gone = origin(hub, tmp_path)
    with pytest.raises(SourceError, match="out of reach"):
        gone.search("gemma", 5)


def test_a_stumbling_hub_is_asked_as_often_as_by_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hurry(seconds: float) -> None:
        assert seconds < 10

    monkeypatch.setattr(time, "sleep", hurry)
    with loopback_hub() as hub:
        hub.failures = 100
        with pytest.raises(SourceError, match="the hub answers 503") as caught:
            origin(hub, tmp_path).search("gemma", 5)
        assert (len(hub.requests), caught.value.hint) == (ATTEMPTS, NETWORK)


@pytest.mark.parametrize("said", [b'{"error": "no list"}', b'[{"name": "google/gemma-2b-it"}]', b"<html>"])
def test_a_list_in_another_shape_is_said(tmp_path: Path, said: bytes) -> None:
    with loopback_hub() as hub:
        hub.swapped["/api/models"] = said
        with pytest.raises(SourceError, match="cannot be read"):
            origin(hub, tmp_path).search("gemma", 5)


@dataclass
class Offering(FakeOrigin):
    """A hub with a list."""

    offers: tuple[Offer, ...] = ()

    def search(self, word: str, limit: int) -> tuple[Offer, ...]:
        return tuple(each for each in self.offers if word in each.name)[:limit]


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    world.origin = Offering(
        offers=(
            Offer("google/gemma-2b-it", ("GemmaForCausalLM",), {"BF16": 2_506_172_416}, gated=True, downloads=900),
            Offer("acme/gemma-4bit", ("GemmaForCausalLM",), {"I32": 300_000_000, "F16": 500_000_000, "U8": 10}),
            Offer("acme/gemma-falcon", ("FalconForCausalLM",)),
        )
    )
    return world.shop(tmp_path / "home")


def test_each_model_has_its_family_size_and_whether_it_fits(shop: Forge, world: World) -> None:
    world.memory = 4 * 10**9
    done = shop.search("gemma")
    assert [(each.family, each.weights, each.fits) for each in done.found] == [
        ("gemma", 5_012_344_832, False),
        ("gemma", 2_200_000_010, True),
        ("", 0, None),
    ]
    assert done.place == "this machine's memory"
    assert done.found[0].gated
    assert done.found[2].architecture == "FalconForCausalLM"


def test_a_card_that_is_here_or_named_is_what_counts(shop: Forge, world: World) -> None:
    world.memory, world.gpus = (
        10**9,
        (Gpu("NVIDIA L4", 24 * 10**9, "8.9", 5 * 10**9), Gpu("NVIDIA L4", 24 * 10**9, "8.9", 10**9)),
    )
    done = shop.search("gemma-2b")
    assert (done.place, done.room, done.found[0].fits) == ("NVIDIA L4", 5 * 10**9, False)
    assert shop.search("gemma-2b", gpu="RTX 4090").found[0].fits
