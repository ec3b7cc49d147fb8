"""Deployment files: read whole, told apart from recipes, and turned into one repository whose engines share their GPU."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import tomli
from click.testing import CliRunner
from hypothesis import given, strategies as st
from msgspec.structs import replace

from fake_wiring import World
from forge.api.forge import Forge
from forge.cli import main
from forge.errors import RecipeError
from forge.fit import sharing
from forge.fit.gpus import find
from forge.fit.sharing import Claim
from forge.recipe import deployment
from forge.recipe.deployment import Deployment, GpuTable, read
from forge.schema.values import COMMON_ROLES, Gpu

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "deployments").glob("*.toml"))
TWIN = 'name = "{name}"\n[source]\nhub = "acme/{name}"\n[runtime]\nkind = "twin"\n'
ENGINE = 'name = "{name}"\n[source]\nhub = "acme/{name}"\n[runtime]\nimage = "25.08"\ngpus = "{gpus}"\n[serve]\n{serve}\n'
TWO = 'recipes = ["a.toml", "b.toml"]\nrepository = "models"\n'
CARD = Gpu("Card", 24 * 10**9, "8.9")


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


def wrong(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(text, "d.toml")
    return str(caught.value)


def accepted(document: dict[str, object]) -> bool:
    """Whether the JSON schema takes it."""
    try:
        jsonschema.validate(document, deployment.schema())
    except jsonschema.ValidationError:
        return False
    return True


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def two(folder: Path, more: str = "") -> Path:
    """A deployment of two twins."""
    for name in ("a", "b"):
        written(folder, f"{name}.toml", TWIN.format(name=name))
    return written(folder, "d.toml", TWO + more)


# -- reading


def test_every_problem_is_said_at_once_with_its_fix() -> None:
    said = wrong('repozitory = "x"\nrecipes = [3, {recipe = "a.toml", nam = "x"}]\n[gpu]\nmemory = 1.5\n[ports]\nhttp = 0\n')
    assert "d.toml: repozitory: unknown key" in said
    assert "did you mean 'repository'?" in said
    assert "d.toml: recipes[0]: found the number 3; allowed: the path of a recipe" in said
    assert "d.toml: recipes[1].nam: unknown key" in said
    assert "did you mean 'name'?" in said
    assert "d.toml: gpu.memory: found the number 1.5; allowed: a number, above 0 and at most 1 or bytes with their unit" in said
    assert "d.toml: ports.http: found the number 0; allowed: a whole number, at least 1 and at most 65535" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipes = []", "a deployment without recipes"),
        (
            'recipes = ["a"]\n[replicas]\ntensorrt_llm = 2',
            "replicas.tensorrt_llm: 2 instances of an engine: each would load all",
        ),
        ('[[recipes]]\nrecipe = "a"\nreplicas = { tensorrt_llm = 3 }', r"recipes[0].replicas.tensorrt_llm: 3 instances"),
        ('recipes = ["a"]\n[ports]\nhttp = 9\ngrpc = 9', "ports: http, grpc and metrics each need their own; found 9, 9, 8002"),
        ("recipes = [", "this is no TOML"),
        ('recipes = ["a"]\n[replicas]\nensemble = 2', "replicas.ensemble: unknown key"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(text: str, said: str) -> None:
    assert said in wrong(text)


def test_a_members_replicas_win_over_those_for_all() -> None:
    found = read('[replicas]\nbls = 4\npreprocessing = 2\n[[recipes]]\nrecipe = "a"\nreplicas = { bls = 9 }\n', "d")
    assert (found.members[0].replicas.bls, found.members[0].replicas.preprocessing) == (9, 2)


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [(0.5, 12 * 10**9), ("20 GB", 20 * 10**9), ("2GiB", 2 << 30), ("1 TB", 24 * 10**9), (None, 24 * 10**9)],
)
def test_a_budget_is_a_part_or_bytes_within_the_whole(memory: float | str | None, wanted: int) -> None:
    assert Deployment(recipes=("a",), gpu=GpuTable(memory=memory)).budget(CARD.memory) == wanted


@pytest.mark.parametrize("file", SHIPPED, ids=[file.name for file in SHIPPED])
def test_shipped_deployments_fit_the_schema_and_name_existing_recipes(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert accepted(tomli.loads(text))
    assert all((file.parent / member.recipe).is_file() for member in read(text, str(file)).members)


def test_the_schema_refuses_what_the_reader_refuses() -> None:
    assert not accepted({"recipes": ["a"], "gpu": {"memory": 2.0}})
    assert not accepted({"recipes": [{"name": "no recipe"}]})
    assert accepted({"recipes": ["a", {"recipe": "b", "name": "c"}], "gpu": {"memory": "16 GiB"}})


def test_the_command_prints_either_schema() -> None:
    said = CliRunner().invoke(main, ["schema", "deployment"]).output
    assert json.loads(said)["title"] == "forge deployment"
    assert json.loads(CliRunner().invoke(main, ["schema"]).output)["title"] == "forge recipe"


# -- building


def test_a_deployment_is_built_into_its_own_repository(shop: Forge, tmp_path: Path) -> None:
    built = shop.build([two(tmp_path)])
    assert built.repository == tmp_path / "models"
    folders = {folder.name for folder in built.repository.iterdir() if not folder.name.startswith((".", "_"))}
    assert {f"{name}-{role}" for name in "ab" for role in COMMON_ROLES} < folders


def test_the_same_recipe_stands_twice_under_two_names(shop: Forge, tmp_path: Path) -> None:
    written(tmp_path, "a.toml", TWIN.format(name="a"))
    file = written(tmp_path, "d.toml", 'repository = "m"\nrecipes = ["a.toml", {recipe = "a.toml", name = "again"}]\n')
    assert [model.name for model in shop.build([file]).models] == ["a", "again"]


def test_one_name_for_two_is_refused_with_the_way_out(shop: Forge, tmp_path: Path) -> None:
    written(tmp_path, "a.toml", TWIN.format(name="a"))
    with pytest.raises(RecipeError, match=r"(?s)recipes\[1\]: 'a' is the name of .*a\.toml too.*name of its own"):
        shop.build([written(tmp_path, "d.toml", 'recipes = ["a.toml", "a.toml"]\n')])


def test_the_problems_of_all_its_recipes_are_said_at_once(shop: Forge, tmp_path: Path) -> None:
    written(tmp_path, "a.toml", 'nam = "a"\n')
    with pytest.raises(RecipeError) as caught:
        shop.plan([written(tmp_path, "d.toml", TWO)])
    assert "a.toml: nam: unknown key" in str(caught.value)
    assert "d.toml: recipes[1]: the recipe cannot be read" in str(caught.value)


def test_errors_name_a_recipe_as_one_opens_it_from_here(shop: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("deployments", "recipes", "elsewhere/deep"):
        (tmp_path / folder).mkdir(parents=True)
    written(tmp_path / "recipes", "bad.toml", 'nam = "a"\n')
    written(tmp_path / "deployments", "d.toml", 'recipes = ["../recipes/gone.toml", "../recipes/bad.toml"]\n')
    written(tmp_path / "elsewhere" / "deep", "d.toml", 'recipes = ["../gone.toml"]\n')
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere" / "deep")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        shop.plan([Path("deployments", "d.toml")])
    assert "it is looked for at recipes/gone.toml" in str(caught.value)
    assert "\nrecipes/bad.toml: nam: unknown key" in str(caught.value)
    with pytest.raises(RecipeError, match=r"it is looked for at linked/\.\./gone\.toml"):
        shop.plan([Path("linked", "d.toml")])


def test_a_deployment_is_named_alone(shop: Forge, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="named alone"):
        shop.plan([two(tmp_path), tmp_path / "a.toml"])


def test_replicas_land_in_the_instance_counts(shop: Forge, tmp_path: Path) -> None:
    file = two(tmp_path, "[replicas]\npreprocessing = 2\npostprocessing = 3\nbls = 5\n")
    place = shop.build([file]).repository

    def count(role: str) -> str:
        config = (place / f"a-{role}" / "config.pbtxt").read_text()
        return str(re.findall(r"instance_group\s*\[?\s*\{[^}]*count: (\d+)", config)[0])

    assert [count(role) for role in ("preprocessing", "postprocessing", "tensorrt_llm_bls")] == ["2", "3", "5"]
    assert count("tensorrt_llm") == "1"


# -- sharing a GPU


def engines(folder: Path, more: str = "", serve: tuple[str, str] = ("", ""), gpus: tuple[str, str] = ("all", "all")) -> Path:
    for name, stated, wanted in zip("ab", serve, gpus, strict=True):
        written(folder, f"{name}.toml", ENGINE.format(name=name, serve=stated, gpus=wanted))
    return written(folder, "d.toml", TWO + more)


def parts(place: Path) -> list[float]:
    configs = [(place / f"{name}-tensorrt_llm" / "config.pbtxt").read_text() for name in "ab"]
    found = [
        re.findall(r'key: "kv_cache_free_gpu_mem_fraction"\s*value \{\s*string_value: "([^"]+)"', text) for text in configs
    ]
    return [float(one[0]) for one in found]


def notes(world: World) -> str:
    return "\n".join(event.text for event in world.events if event.kind == "note")


def test_engines_sharing_a_gpu_get_fractions_in_load_order(shop: Forge, world: World, tmp_path: Path) -> None:
    world.gpus = (CARD,)
    file = engines(tmp_path)
    place = shop.build([file]).repository
    shares = shop.fit([file]).shares
    assert parts(place) == [share.fraction for share in shares]
    assert 0 < parts(place)[0] < parts(place)[1] < 1
    assert "kv_cache_free_gpu_mem_fraction on Card, in the order of loading: a " in notes(world)


def test_other_programs_memory_does_not_change_what_is_built(shop: Forge, world: World, tmp_path: Path) -> None:
    world.gpus = (CARD,)
    file = engines(tmp_path)
    before = parts(shop.build([file]).repository)
    world.gpus = (replace(CARD, free=CARD.memory // 2),)
    made = world.made()
    assert parts(shop.build([file]).repository) == before
    assert world.made() == made


def test_a_stated_fraction_stays_and_too_little_is_told(shop: Forge, world: World, tmp_path: Path) -> None:
    world.gpus = (replace(CARD, memory=4 * 10**9),)
    stated = "kv_cache_free_gpu_mem_fraction = 0.999999"
    place = shop.build([engines(tmp_path, serve=(stated, ""))]).repository
    assert parts(place)[0] == 0.999999
    assert re.search(r"b lacks \d+\.\d GB for its cache beside the fractions that recipes state \(a 0\.999999\)", notes(world))


def test_a_budget_leaves_the_rest_of_the_gpu_alone(shop: Forge, world: World, tmp_path: Path) -> None:
    world.gpus = (CARD,)
    whole = parts(shop.build([engines(tmp_path)]).repository)
    limited = parts(shop.build([engines(tmp_path, "[gpu]\nmemory = 0.3\n")]).repository)
    assert all(less <= more for less, more in zip(limited, whole, strict=True))


def test_engines_on_different_gpus_do_not_share(shop: Forge, world: World, tmp_path: Path) -> None:
    world.gpus = (CARD, CARD)
    assert parts(shop.build([engines(tmp_path, gpus=("0", "1"))]).repository) == [0.9, 0.9]


def test_without_a_gpu_the_recipes_stand_with_a_note(shop: Forge, world: World, tmp_path: Path) -> None:
    assert parts(shop.build([engines(tmp_path)]).repository) == [0.9, 0.9]
    assert "a and b share a GPU, and none is here" in notes(world)


def test_devices_of_a_deployment_are_those_of_its_engines(shop: Forge, world: World, tmp_path: Path) -> None:
    world.gpus = (CARD, CARD)
    models = shop.build([engines(tmp_path, '[gpu]\ndevices = "1"\n')]).models
    assert {model.serving.gpus if model.serving else "" for model in models} <= {"1", ""}


@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(0, 10**10)), min_size=1, max_size=4),
    st.integers(10**9, 10**11),
    st.integers(0, 10**11),
)
def test_a_budget_is_kept_to_the_byte(models: list[tuple[int, int, int]], free: int, spare: int) -> None:
    claims = [Claim(fixed, least, least + more) for fixed, least, more in models]
    found = sharing.fractions(free, claims, spare)
    if found is None:
        return
    assert sum(sharing.missing(free + spare, claims, found)) <= len(claims) * (free + spare) // sharing.DECIMALS + len(claims)
    left = free + spare
    for claim, fraction in zip(claims, found, strict=True):
        left -= claim.fixed
        left -= int(left * fraction)
    assert left >= spare


# -- planning and fitting


def test_a_plan_says_whether_it_fits(shop: Forge, world: World, tmp_path: Path) -> None:
    world.gpus = (CARD,)
    found = shop.foresee([engines(tmp_path)])
    assert found.fit
    assert [fit.name for fit in found.fit.fits] == ["a", "b"]
    assert len(found.fit.shares) == 2


def test_a_plan_stands_where_its_fit_is_unknown(shop: Forge, tmp_path: Path) -> None:
    wheel = 'name = "w"\nfamily = "llama"\n[source]\nwheel = "w==1.0"\nfile = "w.gguf"\n[runtime]\nkind = "twin"\n'
    world = World()
    world.origin.files = {"w.gguf": b"GGUF"}
    found = world.shop(tmp_path / "other").foresee([written(tmp_path, "w.toml", wheel)])
    assert found.steps
    assert found.fit is None
    assert "before it is fetched" in found.unfit


def test_a_named_card_is_judged_within_the_budget(shop: Forge, tmp_path: Path) -> None:
    found = shop.fit([engines(tmp_path, '[gpu]\nmemory = "8 GB"\n')], gpu="RTX 4090")
    assert found.gpu
    assert found.gpu.available == 8 * 10**9 < find("RTX 4090").memory


def test_its_ports_are_where_it_is_served(shop: Forge, tmp_path: Path) -> None:
    joint = shop.joint([two(tmp_path, '[ports]\ngrpc = 9001\nhost = "0.0.0.0"\n')])
    assert (joint.ports.http, joint.ports.grpc, joint.ports.host) == (8000, 9001, "0.0.0.0")


def test_a_recipe_in_place_of_a_deployment_is_told_apart(shop: Forge, tmp_path: Path) -> None:
    two(tmp_path)
    with pytest.raises(RecipeError, match=r"a\.toml: this is a recipe, .*\n.*forge serve --repository"):
        shop.joint([tmp_path / "a.toml"], deployed=True)


PAGE = (ROOT / "docs" / "deployments.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
def test_an_example_of_the_docs_is_a_deployment(text: str) -> None:
    assert read(text, "docs/deployments.md").members


def test_the_docs_name_every_key() -> None:
    for table in (Deployment, GpuTable, deployment.PortsTable, deployment.Replicas, deployment.Member):
        for key in table.__struct_fields__:
            assert re.search(rf"[`.]{key}\b", PAGE), key


def test_faults_of_it_and_its_recipes_come_at_once(shop: Forge, tmp_path: Path) -> None:
    written(tmp_path, "a.toml", 'name = "a"\n[source]\nhub = "acme/a"\n[build]\nmax_seqlen = 3\n')
    text = (
        'recipes = ["a.toml", "gone.toml", 3]\nrepositry = "x"\n[ports]\nhttp = 8001\n[replicas]\ntensorrt_llm = 2\nbls = 0\n'
    )
    with pytest.raises(RecipeError) as error:
        shop.joint([written(tmp_path, "bad.toml", text)])
    assert {each.where.removeprefix(f"{tmp_path}/") for each in error.value.problems} == {
        *("bad.toml: recipes[2]", "bad.toml: repositry", "bad.toml: replicas.bls", "bad.toml: replicas.tensorrt_llm"),
        *("bad.toml: ports", "a.toml: build.max_seqlen", "bad.toml: recipes[1]"),
    }


@pytest.mark.parametrize("member", ["{ recipe = 3 }", "{ name = 'a' }", "{}"])
def test_a_table_without_a_usable_recipe_is_told(member: str) -> None:
    assert "d.toml: recipes[0].recipe: " in wrong(f"recipes = [{member}]\n")


def test_a_rule_between_keys_passes_over_wrong_keys() -> None:
    assert wrong("recipes = 3\n").count("recipes") == 1
