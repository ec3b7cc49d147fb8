"""A repository that is being served, or several of them: what comes in, what goes out, and what is refused."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from fake_wiring import World
from fakes import LLAMA, tiny_checkpoint
from forge.api.forge import Forge
from forge.errors import RepositoryError, ServerError
from forge.schema.values import BuildOptions, Ports
from forge.serve.launch import Held, launch
from forge.serve.server_types import Launch, Running
from forge.serve.update import Turnover

TWIN = """
name = "{name}"
[source]
hub = "acme/tiny"
[runtime]
kind = "twin"
{more}
"""


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


def recipe(tmp_path: Path, name: str, more: str = "") -> Path:
    file = tmp_path / f"{name}.toml"
    file.write_text(TWIN.format(name=name, more=more))
    return file


@pytest.fixture
def models(shop: Forge, tmp_path: Path) -> Path:
    """A repository with the model a, which is being served."""
    shop.add([recipe(tmp_path, "a")], repository=tmp_path / "models")
    shop.serve(tmp_path / "models")
    return tmp_path / "models"


def names(shop: Forge, place: Path) -> list[str]:
    return [model.name for model in shop.manifest(place).models]


IN_TURN = [f"b-{role}" for role in ("postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls", "ensemble")]


def test_the_server_loads_an_added_model_callers_last(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    shop.add([recipe(tmp_path, "b")], repository=models)
    assert world.server.told == [f"load {folder}" for folder in IN_TURN]
    assert set(IN_TURN) < set(shop.server(models).models)
    assert "b: the server answers with it" in [event.text for event in world.events]
    assert shop.target("b").address == shop.target("a").address


def test_a_build_that_changes_nothing_leaves_the_server_alone(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    shop.add([recipe(tmp_path, "a")], repository=models)
    assert world.server.told == []


def test_a_version_that_does_not_load_leaves_the_old_everywhere(
    shop: Forge, world: World, models: Path, tmp_path: Path
) -> None:
    """On the disk and in the server."""
    before = shop.manifest(models)
    config = (models / "a-tensorrt_llm" / "config.pbtxt").read_text()
    world.server.broken.add("a-tensorrt_llm")
    with pytest.raises(ServerError, match=r"a-tensorrt_llm.*did not load") as caught:
        shop.add([recipe(tmp_path, "a", "[build]\nmax_batch_size = 3\n")], repository=models)
    assert shop.manifest(models) == before
    assert (models / "a-tensorrt_llm" / "config.pbtxt").read_text() == config
    assert "the repository has what it had before, and the server could not follow" in caught.value.hint
    world.server.broken.clear()
    shop.reload(models)
    assert len(shop.server(models).models) == 5


def test_a_model_that_does_not_load_goes_others_go_on(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    world.server.broken.add("b-tensorrt_llm_bls")
    with pytest.raises(ServerError, match="b-tensorrt_llm_bls") as caught:
        shop.add([recipe(tmp_path, "b")], repository=models)
    assert "the repository has what it had before, and so has the server" in caught.value.hint
    assert names(shop, models) == ["a"]
    assert {model.partition("-")[0] for model in shop.server(models).models} == {"a"}
    assert world.server.told[-3:] == ["unload b-tensorrt_llm", "unload b-preprocessing", "unload b-postprocessing"]


def test_a_renamed_plain_model_answers_anew_before_old_names_go(shop: Forge, world: World, tmp_path: Path) -> None:
    place = tmp_path / "plain"
    shop.build([recipe(tmp_path, "a")], repository=place)
    shop.serve(place)
    shop.build([recipe(tmp_path, "a")], repository=place, options=BuildOptions(prefixed=True))
    told = world.server.told
    assert told[:5] == [f"load {folder.replace('b-', 'a-', 1)}" for folder in IN_TURN]
    assert told[5] == "unload ensemble"
    assert {model.partition("-")[0] for model in shop.server(place).models} == {"a"}


RENAME = BuildOptions(rename_plain=True)
PLAIN = {"postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls", "ensemble"}


@pytest.fixture
def plain(shop: Forge, tmp_path: Path) -> Path:
    """A repository with the model a under plain names, which is being served."""
    place = tmp_path / "plain"
    shop.build([recipe(tmp_path, "a")], repository=place)
    shop.serve(place)
    return place


def stands(shop: Forge, place: Path, *models: str) -> bool:
    """Whether the manifest, the folders and the server agree that there are these and no others."""
    folders = {path.parent.name for path in place.glob("*/config.pbtxt")}
    said = {folder for model in shop.manifest(place).models for folder in model.roles.values()}
    return folders == said == set(shop.server(place).models) and names(shop, place) == [*models]


def test_a_newcomer_loads_before_the_plain_model_is_renamed(shop: Forge, world: World, plain: Path, tmp_path: Path) -> None:
    shop.add([recipe(tmp_path, "b")], repository=plain, options=RENAME)
    told = world.server.told
    assert told[:5] == [f"load {folder}" for folder in IN_TURN]
    assert {each.partition(" ")[2] for each in told[5:10]} == {f"a-{role}" for role in PLAIN}
    assert {each.partition(" ")[2] for each in told[10:]} == PLAIN
    assert stands(shop, plain, "a", "b")


@pytest.mark.parametrize("broken", ["b-preprocessing", "b-ensemble", "a-preprocessing", "a-ensemble"])
def test_a_failed_rename_leaves_the_plain_names_being_served(
    shop: Forge, world: World, plain: Path, tmp_path: Path, broken: str
) -> None:
    before = shop.manifest(plain)
    world.server.broken.add(broken)
    with pytest.raises(ServerError, match=broken) as caught:
        shop.add([recipe(tmp_path, "b")], repository=plain, options=RENAME)
    assert "the repository has what it had before, and so has the server" in caught.value.hint
    assert shop.manifest(plain) == before
    assert stands(shop, plain, "a")
    assert not {each for each in world.server.told if each.partition(" ")[2] in PLAIN}


def test_a_plain_model_that_cannot_unload_keeps_its_names(shop: Forge, world: World, plain: Path, tmp_path: Path) -> None:
    world.server.stuck.add("tensorrt_llm")
    with pytest.raises(ServerError, match="it is stuck"):
        shop.add([recipe(tmp_path, "b")], repository=plain, options=RENAME)
    assert stands(shop, plain, "a")


def test_a_newcomer_that_does_not_load_changes_no_name(shop: Forge, world: World, tmp_path: Path) -> None:
    place = tmp_path / "plain"
    shop.build([engine(tmp_path, world, "a")], repository=place)
    shop.serve(place)
    before = {path: path.stat().st_ino for path in place.rglob("*")}
    with pytest.raises(ServerError, match="cannot take 'b' in") as caught:
        shop.add([engine(tmp_path, world, "b")], repository=place, options=RENAME)
    assert "nothing was published" in caught.value.hint
    assert {path: path.stat().st_ino for path in place.rglob("*")} == before
    assert world.server.told == []
    assert stands(shop, place, "a")


def test_a_build_interrupted_while_the_server_loads_changes_nothing(
    shop: Forge, world: World, models: Path, tmp_path: Path
) -> None:
    world.server.interrupting.add("b-tensorrt_llm")
    with pytest.raises(KeyboardInterrupt):
        shop.add([recipe(tmp_path, "b")], repository=models)
    assert stands(shop, models, "a")
    assert "the repository has what it had before, and so has the server" in [event.text for event in world.events]


def test_of_several_models_built_anew_all_load_or_none(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    shop.add([recipe(tmp_path, "b")], repository=models)
    before = shop.manifest(models)
    world.server.broken.add("b-tensorrt_llm")
    more = "[build]\nmax_batch_size = 3\n"
    with pytest.raises(ServerError, match="b-tensorrt_llm"):
        shop.add([recipe(tmp_path, "a", more), recipe(tmp_path, "b", more)], repository=models)
    assert shop.manifest(models) == before
    world.server.broken.clear()
    shop.reload(models)
    assert stands(shop, models, "a", "b")


def test_a_model_that_cannot_unload_whole_is_served_whole(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    shop.add([recipe(tmp_path, "b")], repository=models)
    world.server.stuck.add("b-tensorrt_llm")
    with pytest.raises(ServerError, match="it is stuck") as caught:
        shop.remove("b", models)
    assert "the repository has what it had before, and so has the server" in caught.value.hint
    assert stands(shop, models, "a", "b")


def test_a_reload_takes_what_it_can_and_names_the_rest(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    server = world.server.alive.pop()
    shop.add([recipe(tmp_path, "b"), recipe(tmp_path, "c"), recipe(tmp_path, "d")], repository=models)
    world.server.alive.append(server)
    world.server.broken |= {"b-ensemble", "d-ensemble"}
    with pytest.raises(ServerError, match=r"'b-ensemble' did not load(.|\n)*'d-ensemble' did not load"):
        shop.reload(models)
    assert "c-ensemble" in shop.server(models).models


def test_a_removed_model_is_unloaded_first_callers_before_it(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    shop.add([recipe(tmp_path, "b")], repository=models)
    world.server.told.clear()
    shop.remove("b", models)
    assert world.server.told == [f"unload {folder}" for folder in reversed(IN_TURN)]
    assert names(shop, models) == ["a"]


def test_what_needs_another_environment_is_refused_before_it_is_published(
    shop: Forge, world: World, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(ServerError, match=r"cannot take 'b' in: it runs environment .*, and this needs environment") as caught:
        shop.add([recipe(tmp_path, "b", 'packages = ["torch==2.0"]\n')], repository=models)
    assert "nothing was published" in caught.value.hint
    assert names(shop, models) == ["a"]
    assert world.server.told == []


def test_a_reload_names_what_it_does_not_find(shop: Forge, models: Path) -> None:
    with pytest.raises(RepositoryError, match="there is no model 'c'") as caught:
        shop.reload(models, "c")
    assert "a" in caught.value.hint


def test_a_reload_takes_in_what_another_forge_has_changed(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    server = world.server.alive.pop()  # nobody's, as far as this forge knows
    shop.add([recipe(tmp_path, "b")], repository=models)
    shop.remove("a", models)
    world.server.alive.append(server)
    running = shop.reload(models)
    assert set(running.models) == set(IN_TURN)


def test_one_server_serves_several_repositories_and_is_found_by_any(shop: Forge, tmp_path: Path) -> None:
    places = [tmp_path / "first", tmp_path / "second"]
    for name, place in zip("ab", places, strict=True):
        shop.add([recipe(tmp_path, name)], repository=place)
    assert f"--model-repository={places[1]}" in shop.command(places, Ports()).argv
    running = shop.serve(places)
    assert len(running.models) == 10
    assert shop.server(places[0]) == shop.server(places[1]) == running
    assert shop.target("b", places[0]).repository == places[1]
    shop.add([recipe(tmp_path, "c")], repository=places[1])
    assert len(shop.server(places[0]).models) == 15
    shop.stop(running)
    assert shop.servers() == ()


def test_repositories_sharing_model_names_are_refused_with_a_way_out(shop: Forge, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shop.build([recipe(tmp_path, "a")], repository=first)
    shop.build([recipe(tmp_path, "b")], repository=second)
    with pytest.raises(ServerError, match=r"'ensemble' stands in two of the repositories: .*first and .*second") as caught:
        shop.serve([first, second])
    assert f"--prefixed --repository {second}" in caught.value.hint
    shop.build([recipe(tmp_path, "b")], repository=second, options=BuildOptions(prefixed=True))
    assert len(shop.serve([first, second]).models) == 10
    shop.build([recipe(tmp_path, "a")], repository=tmp_path / "third", options=BuildOptions(prefixed=True))
    with pytest.raises(ServerError, match="recipe 'a' stands in two"):
        shop.serve([first, tmp_path / "third"])


def test_an_environment_that_holds_all_others_serves_them_all(shop: Forge, tmp_path: Path) -> None:
    place = tmp_path / "models"
    shop.add([recipe(tmp_path, "a"), recipe(tmp_path, "b", 'packages = ["torch==2.0"]\n')], repository=place)
    wanted = shop.launch(place, Ports())
    assert wanted.environment is not None
    assert "torch==2.0" in (wanted.environment / "packages.txt").read_text()
    shop.add([recipe(tmp_path, "c", 'packages = ["tiktoken==0.7"]\n')], repository=place)
    with pytest.raises(ServerError, match="need packages that no one of their") as caught:
        shop.launch(place, Ports())
    assert "b: 3.11 with torch==2.0 on top" in str(caught.value)
    assert "another --repository" not in caught.value.what
    assert "--repository" in caught.value.hint


def test_a_server_of_unknown_making_is_believed(shop: Forge, world: World, models: Path, tmp_path: Path) -> None:
    world.server.alive = [replace(one, base=()) for one in world.server.alive]
    shop.add([recipe(tmp_path, "b")], repository=models)
    assert names(shop, models) == ["a", "b"]


def engine(tmp_path: Path, world: World, name: str, architecture: str = "Llama", image: str = "25.08") -> Path:
    """A recipe of kind engine; the one place that there is has a checkpoint of that architecture from now on."""
    kind = {"Llama": "llama", "Qwen2": "qwen2", "Phi3Small": "phi3small"}[architecture]
    world.origin.files = tiny_checkpoint({**LLAMA, "architectures": [f"{architecture}ForCausalLM"], "model_type": kind})
    file = tmp_path / f"{name}.toml"
    file.write_text(f'''
name = "{name}"
[source]
hub = "acme/{name}"
[runtime]
kind = "engine"
image = "{image}"
gpus = "none"
''')
    return file


def test_an_image_that_holds_all_others_serves_many_families(shop: Forge, world: World, tmp_path: Path) -> None:
    place = tmp_path / "models"
    shop.add([engine(tmp_path, world, "b")], repository=place)
    alone = shop.launch(place, Ports())
    shop.add([engine(tmp_path, world, "a", "Qwen2")], repository=place)
    wanted = shop.launch(place, Ports())
    assert wanted.image == alone.image
    assert wanted.orchestrated
    assert wanted.turns == (("b-postprocessing", "b-preprocessing", "b-tensorrt_llm", "b-tensorrt_llm_bls", "b-ensemble"),)
    assert "b-tensorrt_llm" not in wanted.first


def test_a_second_engine_does_not_join_a_one_engine_server(shop: Forge, world: World, tmp_path: Path) -> None:
    place = tmp_path / "models"
    shop.add([engine(tmp_path, world, "a")], repository=place)
    shop.serve(place)
    with pytest.raises(ServerError, match="it runs with 1 process, and this needs in orchestrator mode") as caught:
        shop.add([engine(tmp_path, world, "b")], repository=place)
    assert "`forge stop`, `forge serve --room-for-more`" in caught.value.hint
    assert names(shop, place) == ["a"]


def test_a_server_with_room_takes_more_engines_and_keeps_one(shop: Forge, world: World, tmp_path: Path) -> None:
    place = tmp_path / "models"
    first = engine(tmp_path, world, "a")
    shop.add([first], repository=place)
    shop.serve(place, room=True)
    shop.add([engine(tmp_path, world, "b")], repository=place)
    assert stands(shop, place, "a", "b")
    shop.remove("b", place)
    first.write_text(first.read_text() + "[build]\nmax_batch_size = 2\n")
    shop.add([first], repository=place)
    assert world.server.told[-1] == "load a-ensemble"
    assert stands(shop, place, "a")


def test_room_is_no_other_server_where_no_engine_is_alone(shop: Forge, models: Path) -> None:
    assert shop.launch(models, Ports(), room=True) == shop.launch(models, Ports())


def test_a_new_version_of_an_engine_loads_into_its_server(shop: Forge, world: World, tmp_path: Path) -> None:
    place = tmp_path / "models"
    file = engine(tmp_path, world, "a")
    shop.add([file], repository=place)
    shop.serve(place)
    file.write_text(file.read_text() + "[build]\nmax_batch_size = 2\n")
    shop.add([file], repository=place)
    assert world.server.told[-1] == "load a-ensemble"


def test_an_engine_in_parts_is_not_exchanged_under_mpi(shop: Forge, world: World, tmp_path: Path) -> None:
    place = tmp_path / "models"
    shop.add([engine(tmp_path, world, "a")], repository=place)
    world.server.start(replace(shop.launch(place, Ports()), world=2), lambda _: None)

    def plan(held: Held, running: Running) -> Launch:
        return replace(launch(held, shop.store, running.ports), world=2)

    with pytest.raises(ServerError, match="stand in parts"):
        Turnover(shop.store, world.server, plan, lambda _: None).publish_all(place, shop.manifest(place).models, str)


def test_images_of_different_versions_are_refused_with_both_named(shop: Forge, world: World, tmp_path: Path) -> None:
    place = tmp_path / "models"
    shop.add([engine(tmp_path, world, "a")], repository=place)
    world.containers.identity = "sha256:" + "b" * 64
    shop.add([engine(tmp_path, world, "b", image="25.06")], repository=place)
    with pytest.raises(ServerError, match="built in different images") as caught:
        shop.launch(place, Ports())
    assert "25.08" in caught.value.what
    assert "25.06" in caught.value.what
    assert "one `runtime.image`" in caught.value.hint
