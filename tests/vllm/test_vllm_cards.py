"""Models of vLLM on GPUs, on fakes: each one's part of a card that they share, which card it is, and what is narrowed there."""

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from fake_wiring import World
from forge.api.forge import Forge
from forge.errors import RecipeError
from forge.fit.gpus import find
from forge.machine.probe import ThisMachine
from forge.schema.values import Gpu
from vllm_recipe import stated, write

PART = "gpu_memory_utilization"


@pytest.fixture
def card(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine with one H100."""
    world.gpus = (find("H100 SXM"),)

    def seen(_: ThisMachine) -> tuple[Gpu, ...]:
        return world.gpus

    monkeypatch.setattr(ThisMachine, "gpus", seen)
    return world


@pytest.fixture
def shop(card: World, tmp_path: Path) -> Forge:
    return card.shop(tmp_path / "home")


def parts(root: Path, *names: str) -> list[object]:
    return [stated(root, name).get(PART) for name in names]


def test_models_that_say_nothing_share_the_card_out(shop: Forge, card: World, tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    recipes = [write(folder, name="one"), write(folder, name="two")]
    root = shop.build(recipes, repository=tmp_path / "models").repository
    one, two = parts(root, "one", "two")
    assert isinstance(one, float)
    assert one == two
    assert 0.4 < one < 0.46, "two halves of what vLLM takes alone, less what a process has beside its part"
    assert any(f"{PART} on H100 SXM: one {one}, two {two}" in event.text for event in card.events)


def test_a_model_alone_is_left_to_vllm(shop: Forge, tmp_path: Path) -> None:
    root = shop.build([write(tmp_path / "recipes")], repository=tmp_path / "models").repository
    assert parts(root, "tiny") == [None]


def test_a_stated_part_stays_and_the_rest_is_shared(shop: Forge, tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    recipes = [
        write(folder, f"[serve.vllm]\n{PART} = 0.6\n", name="one"),
        write(folder, name="two"),
        write(folder, name="three"),
    ]
    root = shop.build(recipes, repository=tmp_path / "models").repository
    one, two, three = parts(root, "one", "two", "three")
    assert one == 0.6
    assert isinstance(two, float)
    assert two == three
    assert 0.1 < two < 0.16


def test_models_on_cards_of_their_own_share_none(shop: Forge, card: World, tmp_path: Path) -> None:
    card.gpus = (find("H100 SXM"), find("H100 SXM"))
    folder = tmp_path / "recipes"
    recipes = [write(folder, name="one", runtime="gpus = '0'"), write(folder, name="two", runtime="gpus = '1'")]
    root = shop.build(recipes, repository=tmp_path / "models").repository
    assert parts(root, "one", "two") == [None, None]
    for name, number in (("one", "0"), ("two", "1")):
        config = (root / name / "config.pbtxt").read_text()
        assert re.search(rf'key: "gpus"\s+value {{\s+string_value: "{number}"', config)


def test_a_deployments_budget_is_all_that_they_take(shop: Forge, card: World, tmp_path: Path) -> None:
    """Beside engines, which a repository of their own serves."""
    folder = tmp_path / "recipes"
    write(folder, name="one")
    file = folder / "deployment.toml"
    file.write_text('recipes = ["one.toml"]\nrepository = "models"\n[gpu]\nmemory = 0.5\n')
    root = shop.build([file]).repository
    (one,) = parts(root, "one")
    assert isinstance(one, float)
    assert 0.45 < one < 0.5


def test_fit_shares_the_card_as_a_build_does(shop: Forge, card: World, tmp_path: Path) -> None:
    """On an H100 it refused what the build then shared out: it judged each as if the other were not there."""
    folder = tmp_path / "recipes"
    recipes = [write(folder, name="one"), write(folder, name="two")]
    root = shop.build(recipes, repository=tmp_path / "models").repository
    for report in (shop.fit(recipes), shop.fit(recipes, gpu="H100 SXM")):
        assert [each.utilization for each in report.fits] == parts(root, "one", "two")
        assert report.fit
    card.gpus = ()
    named = shop.fit(recipes, gpu="H100 SXM")
    assert [each.utilization for each in named.fits] == parts(root, "one", "two"), "a card that is only named, on a laptop"


def test_fit_says_what_is_missing_to_fit_together(shop: Forge, card: World, tmp_path: Path) -> None:
    card.gpus = (replace(find("H100 SXM"), memory=10**9),)
    folder = tmp_path / "recipes"
    report = shop.fit([write(folder, name="one"), write(folder, name="two")])
    assert report.short > 0
    assert not report.fit
    apart = [write(folder, name="three", runtime="gpus = '0'"), write(folder, name="four", runtime="gpus = '1'")]
    card.gpus = (find("H100 SXM"), find("H100 SXM"))
    assert shop.fit(apart).fit


def test_caches_of_a_stated_size_are_counted_as_that(shop: Forge, tmp_path: Path) -> None:
    """vLLM asks for no part of the card then, and two of them were said not to fit where a build takes them."""
    recipes = [
        write(tmp_path / "recipes", "[serve.vllm]\nkv_cache_memory_bytes = 1000000\n", name=name) for name in ("one", "two")
    ]
    report = shop.fit(recipes, gpu="H100 SXM")
    assert report.short == 0
    assert report.fit


def test_fit_refuses_parts_that_recipes_state_beyond_the_card(shop: Forge, tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    recipes = [write(folder, f"[serve.vllm]\n{PART} = 0.6\n", name=name) for name in ("one", "two")]
    with pytest.raises(RecipeError, match=r"1\.2 of the card in all"):
        shop.fit(recipes, gpu="H100 SXM")


def test_what_does_not_fit_together_is_refused(shop: Forge, card: World, tmp_path: Path) -> None:
    card.gpus = (replace(find("H100 SXM"), memory=10**9),)
    folder = tmp_path / "recipes"
    with pytest.raises(RecipeError, match="of the card in all"):
        shop.build([write(folder, name="one"), write(folder, name="two")], repository=tmp_path / "models")


@pytest.mark.parametrize(
    ("quantization", "runtime", "lowered"),
    [
        ("fp8", "", {"quantization": "fp8"}),
        ("fp8_kv", "", {"kv_cache_dtype": "fp8"}),
        ("int4_weight_only", 'packages = ["bitsandbytes==0.49.0"]', {"quantization": "bitsandbytes"}),
    ],
)
def test_what_vllm_narrows_while_it_loads(
    shop: Forge, tmp_path: Path, quantization: str, runtime: str, lowered: dict[str, str]
) -> None:
    recipe = write(tmp_path / "recipes", f"[convert]\nquantization = '{quantization}'\n", runtime=runtime)
    root = shop.build([recipe], repository=tmp_path / "models").repository
    assert lowered.items() <= stated(root).items()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[convert]\nquantization = 'int4_weight_only'\n", "bitsandbytes, and that is not in its environment"),
        ("[convert]\nquantization = 'int4_awq'\n", "looks at none when it loads"),
        ("[convert]\nquantization = 'fp8'\n[serve.vllm]\nquantization = 'fp8'\n", "says it too"),
    ],
)
def test_what_it_does_not_is_refused_with_the_reason(shop: Forge, tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        shop.plan([write(tmp_path / "recipes", more)])
