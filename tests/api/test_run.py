"""`forge run`: which recipe is meant, which runtime it gets and why, and that what is served is not made again."""

import socket
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from fake_wiring import World
from fakes import LLAMA, tiny_checkpoint
from forge.api.forge import Forge
from forge.cli import main
from forge.errors import ForgeError, HostError, Problem, RepositoryError, SourceError
from forge.recipe import shipped
from forge.schema.values import BuildOptions, Gpu, Ports, RuntimeKind
from forge.settings import PortsTable, Settings

H100 = Gpu("NVIDIA H100", 80 * 10**9, "9.0", 79 * 10**9)
RECIPE = '\nname = "tiny"\n[source]\nhub = "acme/tiny"\n[build]\nmax_input_len = 64\nmax_seq_len = 128\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which forge is called."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


@pytest.fixture
def recipe(here: Path) -> str:
    (here / "tiny.toml").write_text(RECIPE)
    return "tiny.toml"


# -- which recipe


def test_a_name_is_sought_here_then_below_recipes_then_shipped(here: Path) -> None:
    assert shipped.located("gemma-2b-it") == str(shipped.folder() / "gemma-2b-it.toml")
    (here / "recipes").mkdir()
    (here / "recipes" / "gemma-2b-it.toml").touch()
    assert shipped.located("gemma-2b-it") == "recipes/gemma-2b-it.toml"
    (here / "gemma-2b-it.toml").touch()
    assert shipped.located("gemma-2b-it") == "gemma-2b-it.toml"


@pytest.mark.parametrize("text", ["nobody", "nowhere.toml", "google/gemma-2b-it", "recipes/gemma-2b-it", ".", ""])
def test_what_names_no_recipe_stays_as_it_is(text: str) -> None:
    assert shipped.located(text) == text


def test_every_verb_takes_a_shipped_recipe_by_its_name(shop: Forge) -> None:
    assert shop.read("smollm2-135m-instruct").name == "smollm2-135m-instruct"
    assert shop.joint(["gemma-2b-it"]).stated.members[0].recipe.endswith("gemma-2b-it.toml")


@pytest.mark.parametrize(("hub", "name"), [("google/gemma-2b-it", "gemma-2b-it"), ("meta-llama/Llama-2-7b-hf", "llama-7b")])
def test_a_hub_id_finds_the_shipped_recipe_adding_least(shop: Forge, hub: str, name: str) -> None:
    assert shop.runs.recipe(hub) == (shipped.folder() / f"{name}.toml", False)


def test_a_hub_id_without_a_recipe_gets_one_once(shop: Forge, here: Path) -> None:
    assert shop.runs.recipe("acme/tiny-chat") == (Path("tiny-chat.toml"), True)
    assert shop.read("tiny-chat.toml").source.hub == "acme/tiny-chat"
    (here / "tiny-chat.toml").write_text((here / "tiny-chat.toml").read_text().replace("max_tokens = 512", "max_tokens = 5"))
    assert shop.runs.recipe("acme/tiny-chat") == (Path("tiny-chat.toml"), False)


def test_a_recipe_of_another_source_is_not_written_over(shop: Forge, recipe: str, here: Path) -> None:
    with pytest.raises(ForgeError, match="another source") as error:
        shop.runs.recipe("other/tiny")
    assert "forge new other/tiny -o" in error.value.hint
    assert (here / recipe).read_text() == RECIPE


def test_a_checkpoint_on_this_disk_gets_a_recipe_too(shop: Forge, here: Path) -> None:
    (here / "mine").mkdir()
    for path, content in tiny_checkpoint().items():
        (here / "mine" / path).write_bytes(content)
    found, drafted = shop.runs.recipe("mine")
    assert drafted
    assert shop.read(found).source.path == "mine"


def test_an_unknown_name_is_answered_with_what_there_is(shop: Forge) -> None:
    with pytest.raises(SourceError) as error:
        shop.runs.recipe("gema-2b-it")
    assert "did you mean 'gemma-2b-it'?" in error.value.hint
    assert "smollm2-135m-instruct" in error.value.hint


def test_a_recipe_that_is_not_there_is_no_unknown_name(shop: Forge) -> None:
    with pytest.raises(SourceError, match="there is no such file") as error:
        shop.runs.choose("./gema-2b-it.toml")
    assert "did you mean 'gemma-2b-it'" in error.value.hint


def test_an_empty_name_is_not_the_current_folder(shop: Forge, here: Path) -> None:
    for path, content in tiny_checkpoint().items():
        (here / path).write_bytes(content)
    with pytest.raises(SourceError, match="is empty"):
        shop.runs.choose("")
    assert not list(here.glob("*.toml"))


# -- which runtime


def test_without_a_gpu_the_twin_serves(shop: Forge, recipe: str) -> None:
    choice = shop.runs.choose(recipe)
    assert (choice.runtime, choice.why) == (RuntimeKind.TWIN, "no GPU is here")


def test_an_engine_is_taken_where_gpu_image_and_architecture_are(shop: Forge, world: World, recipe: str) -> None:
    world.gpus = (H100,)
    choice = shop.runs.choose(recipe)
    assert (choice.runtime, choice.why) == (RuntimeKind.ENGINE, "NVIDIA H100")
    assert choice.fit is not None
    assert choice.fit.fit


def test_without_the_image_vllm_serves_and_the_image_is_named(shop: Forge, world: World, recipe: str) -> None:
    world.gpus, world.containers.here = (H100,), False
    choice = shop.runs.choose(recipe)
    assert choice.runtime is RuntimeKind.VLLM
    assert "engine: its image is not here (`docker pull nvcr.io/nvidia/tritonserver:" in choice.why


def test_without_docker_the_reason_is_dockers(shop: Forge, world: World, recipe: str) -> None:
    world.gpus, world.containers.problems = (H100,), (Problem("docker", "no daemon answers"),)
    assert "engine: no daemon answers" in shop.runs.choose(recipe).why


def test_an_architecture_without_a_family_goes_to_vllm(shop: Forge, world: World, recipe: str) -> None:
    world.gpus = (H100,)
    world.origin.files = tiny_checkpoint({**LLAMA, "architectures": ["FalconForCausalLM"], "model_type": "falcon"})
    choice = shop.runs.choose(recipe)
    assert choice.runtime is RuntimeKind.VLLM
    assert choice.why.startswith("NVIDIA H100; engine: ")


def test_what_the_recipe_asks_for_is_tried_first(shop: Forge, here: Path) -> None:
    (here / "mine.toml").write_text(RECIPE + '[runtime]\nkind = "vllm"\n')
    choice = shop.runs.choose("mine")
    assert (choice.runtime, choice.why) == (RuntimeKind.VLLM, "no GPU is here; the recipe asks for it")


def test_a_stated_runtime_is_taken_without_a_look_at_others(shop: Forge, world: World, recipe: str) -> None:
    world.gpus = (H100,)
    choice = shop.runs.choose(recipe, RuntimeKind.TWIN)
    assert (choice.runtime, choice.why) == (RuntimeKind.TWIN, "as you said")


def test_what_does_not_fit_is_refused_before_anything_is_fetched(shop: Forge, world: World, recipe: str) -> None:
    world.memory = 10**6
    with pytest.raises(HostError, match="does not fit") as error:
        shop.runs.choose(recipe, RuntimeKind.TWIN)
    assert "forge fit tiny.toml --runtime twin" in error.value.hint
    with pytest.raises(HostError, match=r"no runtime can serve tiny here \(no GPU is here\)\ntwin: it does not fit"):
        shop.runs.choose(recipe)
    assert world.origin.fetches == 0


# -- served


def test_a_run_builds_and_serves_and_the_next_makes_nothing(shop: Forge, world: World, recipe: str, here: Path) -> None:
    target = shop.run(recipe)
    assert target.model.name == "tiny"
    assert [running.repository for running in world.server.alive] == [str(here / "model-repository")]
    made, world.origin.down = world.made(), True
    again = shop.runs.choose(recipe)
    assert again.served == target
    assert shop.runs.serve(again) == target
    assert world.made() == made


def test_a_missing_chat_template_is_said_at_the_start(shop: Forge, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(*_: object, **__: object) -> Forge:
        return shop

    monkeypatch.setattr(Forge, "here", here)
    done = CliRunner().invoke(main, ["run", recipe], input="")
    assert done.exit_code == 0, done.output
    said = "tiny has no chat template: it continues what you write, and remembers nothing of it\n"
    assert said in done.stderr


def test_a_changed_recipe_is_built_again_under_the_running_server(shop: Forge, world: World, recipe: str) -> None:
    shop.run(recipe)
    Path(recipe).write_text(RECIPE + "[sampling]\nmax_tokens = 3\n")
    assert shop.run(recipe).model.sampling.max_tokens == 3
    assert len(world.server.alive) == 1


def test_whoever_built_it_a_changed_recipe_is_built_once_more(shop: Forge, recipe: str) -> None:
    place = shop.build([recipe], BuildOptions(RuntimeKind.TWIN)).repository
    shop.serve(place, detach=True)
    assert shop.runs.choose(recipe).served is not None
    Path(recipe).write_text(RECIPE + "# only a remark\n")
    assert shop.runs.choose(recipe).served is None
    shop.run(recipe)
    assert shop.runs.choose(recipe).served is not None


@pytest.fixture
def two(here: Path) -> tuple[str, str]:
    for name in ("one", "two"):
        (here / f"{name}.toml").write_text(RECIPE.replace('"tiny"', f'"{name}"'))
    return "one", "two"


def test_a_second_model_stands_beside_the_first_in_one_server(shop: Forge, world: World, two: tuple[str, str]) -> None:
    assert [shop.run(name).model.prefix for name in two] == [*two]
    assert len(world.server.alive) == 1
    assert {model.name for model in shop.models()} == {*two}


def test_a_plainly_named_model_makes_room_only_when_told(shop: Forge, two: tuple[str, str]) -> None:
    shop.build(["one.toml"], BuildOptions(RuntimeKind.TWIN), repository="model-repository")
    assert shop.run("one").model.prefix == ""
    with pytest.raises(RepositoryError) as error:
        shop.run("two")
    assert "--rename-plain" in str(error.value)
    assert shop.run("two", rename_plain=True).model.prefix == "two"


def test_a_repository_of_another_runtime_is_left_alone(shop: Forge, two: tuple[str, str], here: Path) -> None:
    shop.build(["one.toml"], BuildOptions(RuntimeKind.ENGINE), repository="model-repository")
    assert shop.run("two").repository == here / "model-repository-twin"
    assert shop.run("two").repository == here / "model-repository-twin"
    assert [model.name for model in shop.models("model-repository")] == ["one"]


def test_taken_ports_are_replaced_by_free_ones_and_said(shop: Forge, world: World, recipe: str) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # somebody else has it, which is the same
            taken.bind(("127.0.0.1", Ports().grpc))
        taken.listen()
        shop.run(recipe)
    assert world.server.alive[0].ports.grpc != Ports().grpc
    assert any("are taken" in event.text for event in world.events if event.kind == "note")


def test_an_address_of_another_machine_moves_nothing_to_the_loopback(world: World, tmp_path: Path, recipe: str) -> None:
    elsewhere = Settings(ports=PortsTable(host="192.0.2.1"))  # no machine's: RFC 5737 keeps it for documentation
    world.shop(tmp_path / "home", settings=elsewhere).run(recipe)
    assert world.server.alive[0].ports.host == "192.0.2.1", "where a real server says that this machine has no such address"


def test_a_start_of_another_forge_that_fails_is_done_again(shop: Forge, world: World, recipe: str) -> None:
    first = shop.run(recipe)
    for choice in (shop.runs.choose(recipe), replace(shop.runs.choose(recipe), served=None)):
        world.server.failing = {str(first.repository)}
        before = world.server.alive[0]
        assert shop.runs.serve(choice).model == first.model
        assert len(world.server.alive) == 1
        assert world.server.alive[0] is not before


def test_a_server_another_forge_is_starting_is_awaited_before_noted(shop: Forge, world: World, recipe: str) -> None:
    world.server.busy = 2
    assert shop.run(recipe).model.name == "tiny"
    assert (world.server.busy, len(world.server.alive)) == (0, 1)


def test_a_served_model_runs_by_name_without_its_recipe(
    shop: Forge, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(shop.run(recipe).repository)
    monkeypatch.chdir(tmp_path)
    choice = shop.runs.choose("tiny", repository=place)
    assert (choice.served, shop.runs.serve(choice)) == (shop.target("tiny", place),) * 2
    with pytest.raises(SourceError, match="no recipe"):
        shop.runs.choose("tiny", RuntimeKind.ENGINE, place)  # another runtime has to be built, and of what nobody knows


@pytest.mark.parametrize(
    ("what", "why"), [("./nowhere", "no such file or folder"), ("../x.gguf", "no such file"), ("/dev/null", "neither")]
)
def test_the_hub_is_not_asked_for_a_missing_path(shop: Forge, world: World, what: str, why: str) -> None:
    with pytest.raises(SourceError, match=why):
        shop.runs.choose(what)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("named", "meant"), [("gema-2b-it", "gemma-2b-it"), ("smollm2", "smollm2-135m-instruct"), ("Phi", "phi-3-mini-4k-instruct")]
)
def test_a_name_nearly_right_is_answered_with_the_shipped_recipe(shop: Forge, named: str, meant: str) -> None:
    with pytest.raises(SourceError, match="there is no such file") as error:
        shop.read(named)
    assert f"did you mean {meant!r}" in error.value.hint


def test_a_model_repository_is_no_checkpoint_to_run(shop: Forge, recipe: str) -> None:
    place = shop.run(recipe).repository
    with pytest.raises(SourceError, match="this is a model repository") as error:
        shop.runs.choose(str(place))
    assert f"forge serve --repository {place}" in error.value.hint


@pytest.mark.parametrize("place", ["/proc/models", "tiny.toml/models"])
def test_a_place_that_takes_no_publish_is_refused_first(shop: Forge, world: World, recipe: str, place: str) -> None:
    with pytest.raises(RepositoryError, match=r"could not be written|a file stands there"):
        shop.run(recipe, repository=place)
    assert world.origin.fetches == 0


def test_ports_that_were_said_are_not_replaced(shop: Forge, world: World, recipe: str) -> None:
    shop.run(recipe, ports=Ports(9100, 9101, 9102))
    assert world.server.alive[0].ports == Ports(9100, 9101, 9102)
