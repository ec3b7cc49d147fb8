"""forge.json says the same of the same repository, and says clearly when it cannot be read."""

import json

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from forge.errors import RepositoryError
from forge.schema import manifest
from forge.schema.manifest import Manifest, PublishedModel, Serving
from forge.schema.values import COMMON_ROLES, Edit, Names, RuntimeKind, SamplingTable

names = st.sampled_from(["a", "b", "gemma-2b-it", "smollm2-135m-instruct", "x.y_z"])
keys = st.integers(0, 2**256 - 1).map("{:064x}".format)


stops = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)


@st.composite
def models(draw: st.DrawFn) -> PublishedModel:
    name = draw(names)
    return PublishedModel(
        name=name,
        prefix=name,
        entry=draw(keys),
        runtime=draw(st.sampled_from(RuntimeKind)),
        roles=Names(name).all(),
        keys=draw(st.dictionaries(st.text(max_size=8), keys, max_size=3)),
        serving=draw(st.none() | st.builds(Serving, environment=keys, backends=keys, triton=st.text(max_size=5))),
        sampling=draw(st.builds(SamplingTable, temperature=st.none() | st.floats(0, 2), stop=st.tuples(stops))),
        linked=draw(st.booleans()),
        inside=draw(st.booleans()),
        edits=tuple(draw(st.lists(st.builds(Edit, st.text(max_size=5), st.text(max_size=5), st.text(max_size=5)), max_size=2))),
    )


def of(*held: PublishedModel) -> Manifest:
    made = Manifest(root="/srv/repository")
    for model in held:
        made = made.having(model)
    return made


@given(st.lists(models(), max_size=3))
def test_what_is_written_is_read_back(held: list[PublishedModel]) -> None:
    assert manifest.read(manifest.write(of(*held))) == of(*held)


@given(st.lists(models(), max_size=3, unique_by=lambda model: model.name))
def test_the_order_of_publishing_does_not_show(held: list[PublishedModel]) -> None:
    assert manifest.write(of(*held)) == manifest.write(of(*reversed(held)))


@given(models())
def test_every_key_that_a_model_stands_on_is_held(model: PublishedModel) -> None:
    serving = {model.serving.environment, model.serving.backends} if model.serving else set[str]()
    assert of(model).held == {model.entry, *model.keys.values(), *serving}
    assert of(model).without(model.name) == of()
    assert of(model).find(model.name) == model
    assert of(model).find("another") is None


def test_a_models_folders_are_its_roles_and_its_assets() -> None:
    model = PublishedModel(name="m", entry="e", runtime=RuntimeKind.TWIN, roles=Names("m").all())
    assert set(model.folders) == {"_assets/m", *(f"m-{role}" for role in COMMON_ROLES)}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1, "models": 3}', '{"format": 1, "other": 1}', b"\xff"])
def test_a_damaged_manifest_is_named_with_its_file(text: str | bytes) -> None:
    with pytest.raises(RepositoryError, match="the manifest cannot be read") as caught:
        manifest.read(text, "somewhere/forge.json")
    assert caught.value.where == "somewhere/forge.json"
    assert caught.value.hint


ODD = ("a\x1b[31m", "a\x9b31m", "a\u202eb", "a\u2028b", "<img src=x>", 'a"} 1', "a\nb", "x" * 10_000, "\u0430")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        *((("name",), each) for each in ("..", "../up", "a/b", "a\0", "", "-o", ".hidden", "/etc")),
        *((("roles", "preprocessing"), each) for each in ("..", "../../up", "/etc", "a\0b", "--exit-on-error=false", "")),
        *((("prefix",), each) for each in ("..", "../up", "a\0")),
        *(
            (place, each)
            for place in (("name",), ("roles", "preprocessing"), ("prefix",))
            for each in (
                "a\x1b[31m",
                "a\x9b31m",
                "a\u202eb",
                "a\u2028b",
                "<img src=x>",
                'a"} 1',
                "a\nb",
                "x" * 10_000,
                "\u0430",
            )
        ),
        *(
            (place, each)
            for place in (("entry",), ("keys", "x"), ("serving", "image"))
            for each in ("../../x", "a/b", "a\0b", "..")
        ),
    ],
)
def test_a_manifest_that_leads_elsewhere_is_not_read(place: tuple[str, ...], said: str) -> None:
    model = PublishedModel(name="m", entry="eee", runtime=RuntimeKind.TWIN, roles=Names("m").all(), keys={"x": "key"})
    stated = json.loads(manifest.write(of(replace(model, serving=Serving(image="image")))))
    assert manifest.read(json.dumps(stated)).models
    table = stated["models"][0]
    for each in place[:-1]:
        table = table[each]
    table[place[-1]] = said
    with pytest.raises(RepositoryError, match="the manifest cannot be read"):
        manifest.read(json.dumps(stated))


def test_a_newer_forges_manifest_says_so_whatever_it_holds() -> None:
    newer = manifest.FORMAT + 1
    with pytest.raises(RepositoryError, match=f"format {newer}; this forge knows formats up to {manifest.FORMAT}") as caught:
        manifest.read(json.dumps({"format": newer, "models": "of a kind not known yet"}))
    assert "upgrade forge" in caught.value.hint


def test_a_format_1_manifest_is_written_in_todays_format() -> None:
    former = {
        "format": 1,
        "root": "/srv",
        "models": [{"name": "m", "entry": "e", "runtime": "twin", "roles": Names("m").all()}],
    }
    held = manifest.read(json.dumps(former))
    (model,) = held.models
    assert (model.inside, model.edits, model.assets) == (False, (), "_assets/m")
    assert json.loads(manifest.write(held))["format"] == manifest.FORMAT
    assert manifest.read(manifest.write(held)).models == (model,)


def test_assets_inside_are_in_the_model_over_the_engine() -> None:
    model = PublishedModel(name="m", entry="e", runtime=RuntimeKind.TWIN, prefix="m", roles=Names("m").all(), inside=True)
    assert model.asset("tokenizer") == "m-tensorrt_llm/_assets/tokenizer"
    assert set(model.folders) == {f"m-{role}" for role in COMMON_ROLES}
