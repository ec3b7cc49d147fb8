"""From recipes to a served repository, with a real store, real files, and a world in miniature."""

import json
import os
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from fake_wiring import World
from fakes import LLAMA
from forge.api.forge import Forge
from forge.cli.fit_report import reason
from forge.errors import InferenceError, LockError, RecipeError, RepositoryError, ServerError, SourceError, StepError
from forge.plan.preview import State
from forge.schema.values import COMMON_ROLES, BuildOptions, Ports, SamplingTable
from forge.serve.state import States

TWIN = """
name = "tiny"
[source]
hub = "acme/tiny"
[runtime]
kind = "twin"
[sampling]
max_tokens = 3
"""
GGUF = """
name = "ground"
family = "llama"
[source]
wheel = "acme-model==1.0"
file = "acme/model.gguf"
[runtime]
kind = "twin"
"""


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return written(tmp_path, "tiny.toml", TWIN)


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_build_publishes_the_five_models_and_their_assets(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    built = shop.build([recipe], repository=tmp_path / "models")
    for role in COMMON_ROLES:
        assert (built.repository / role / "config.pbtxt").is_file()
        assert (built.repository / role / "1").is_dir()
    assets = built.repository / "_assets" / "tiny"
    assert {file.name for file in (assets / "engines").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "build_config.json")
    }
    assert {file.name for file in (assets / "tokenizer").iterdir()} == {
        *("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    }


def test_the_configs_name_where_the_repository_stands(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    built = shop.build([recipe], repository=tmp_path / "models")
    text = (built.repository / "tensorrt_llm" / "config.pbtxt").read_text()
    assert str(built.repository / "_assets" / "tiny" / "engines") in text
    assert "/forge/repository" not in text
    assert "${" not in text


def test_a_second_build_makes_nothing_and_fetches_nothing(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    shop.build([recipe], repository=tmp_path / "models")
    made = world.made()
    shop.build([recipe], repository=tmp_path / "models")
    assert world.made() == made
    assert world.origin.fetches == 1


def test_three_repositories_hold_a_weight_once(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    weights = [
        shop.build([recipe], repository=tmp_path / name).repository / "_assets/tiny/engines/model.safetensors" for name in "abc"
    ]
    assert len({file.stat().st_ino for file in weights}) == 1


def test_several_recipes_share_a_repository_under_their_own_names(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    other = written(tmp_path, "other.toml", TWIN.replace('"tiny"', '"other"'))
    built = shop.build([recipe, other], repository=tmp_path / "models")
    folders = {folder.name for folder in built.repository.iterdir() if not folder.name.startswith((".", "_"))}
    assert {f"{name}-{role}" for name in ("tiny", "other") for role in COMMON_ROLES} < folders
    assert 'model_name: "tiny-preprocessing"' in (built.repository / "tiny-ensemble" / "config.pbtxt").read_text()


def test_a_plain_model_makes_room_when_built_again_with_another(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    other = written(tmp_path, "other.toml", TWIN.replace('"tiny"', '"other"'))
    shop.build([recipe], repository=tmp_path / "models")
    shop.build([other, recipe], repository=tmp_path / "models")
    assert not (tmp_path / "models" / "ensemble").exists()
    assert (tmp_path / "models" / "tiny-ensemble").is_dir()


def test_a_second_plain_model_is_refused_before_anything_is_made(
    shop: Forge, world: World, recipe: Path, tmp_path: Path
) -> None:
    other = written(tmp_path, "other.toml", TWIN.replace('"tiny"', '"other"').replace("acme/tiny", "acme/other"))
    shop.build([recipe], repository=tmp_path / "models")
    made = world.made()
    with pytest.raises(RepositoryError, match="tiny"):
        shop.build([other], repository=tmp_path / "models")
    assert world.made() == made


def test_a_gguf_is_converted_before_it_is_assembled(world: World, shop: Forge, tmp_path: Path) -> None:
    world.origin.files = {"acme/model.gguf": b"GGUF"}
    shop.build([written(tmp_path, "ground.toml", GGUF)], repository=tmp_path / "models")
    (command,) = world.executor.ran
    assert command.argv == ("python3", "-m", "twin.gguf", "/forge/model/acme/model.gguf", "/forge/out")
    made = world.made()
    needs, checkpoint, entry = ("environment", "converter", "ground: model"), "ground: hf checkpoint", "ground: entry"
    assert set(made) == {*needs, "backends", checkpoint, entry}
    assert max(map(made.index, needs)) < made.index(checkpoint) < made.index(entry)


def test_a_step_that_breaks_its_promise_fails_and_leaves_nothing(world: World, shop: Forge, tmp_path: Path) -> None:
    world.origin.files = {"acme/model.gguf": b"GGUF"}
    ground = written(tmp_path, "ground.toml", GGUF)
    world.executor.failing = frozenset({"python3"})
    with pytest.raises(StepError):
        shop.build([ground], repository=tmp_path / "models")
    assert not (tmp_path / "models" / "forge.json").exists()
    world.executor.failing = frozenset()
    shop.build([ground], repository=tmp_path / "models")
    assert world.made().count("ground: model") == 1


def test_the_outlook_says_what_changed(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    assert {step.why for step in shop.outlook(shop.plan([recipe]))} == {"first build"}
    shop.build([recipe], repository=tmp_path / "models")
    assert all(step.held for step in shop.outlook(shop.plan([recipe])))
    recipe.write_text(TWIN + "[serve]\nstream = false\n")
    missing = [step for step in shop.outlook(shop.plan([recipe])) if not step.held]
    assert [step.name for step in missing] == ["tiny: entry"]
    assert "decoupled_mode: " in missing[0].why


def test_a_plan_tells_in_few_words_what_differs(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    def whys() -> dict[str, str]:
        steps = shop.foresee([recipe]).steps
        assert all("\n" not in reason(step) for step in steps)
        return {step.name: reason(step) for step in steps if step.state is State.MISS}

    recipe.write_text(f"{TWIN}[build]\nmax_batch_size = 4\n")
    shop.build([recipe], repository=tmp_path / "models")
    recipe.write_text(f"{TWIN}[build]\nmax_batch_size = 6\n")
    assert whys() == {"tiny: entry": "triton_max_batch_size: 4 -> 6; build_config.json differs"}
    recipe.write_text(f"{TWIN}[build]\nmax_batch_size = 6\nmax_input_len = 5\n[serve]\nstream = false\ninstances = 2\n")
    told = whys()["tiny: entry"].split("; ")
    assert len(told) == 4
    assert told[-1].startswith("and ")
    assert told[-1].endswith(" more (--json)")
    recipe.write_text(TWIN.replace('"twin"', '"vllm"'))
    other = "another runtime: twin -> vllm"
    assert whys() == {"backends": other, "vllm environment": "first build", "tiny: entry": other}
    assert "twin/backend.py" in next(step.why for step in shop.foresee([recipe]).steps if step.name == "backends")


def test_what_the_twin_cannot_decode_is_said_before_any_fetch(shop: Forge, world: World, recipe: Path) -> None:
    config = json.loads(world.origin.files["config.json"]) | {"architectures": ["BertModel"]}
    world.origin.files["config.json"] = json.dumps(config).encode()
    recipe.write_text('family = "llama"\n' + TWIN)
    with pytest.raises(RecipeError, match=r"runtime\.packages"):
        shop.plan([recipe])
    able = TWIN.replace('"twin"', '"twin"\npackages = ["transformers==5.0", "torch==2.13.0"]')
    recipe.write_text('family = "llama"\n' + able)
    assert shop.plan([recipe]).steps


@pytest.mark.parametrize(
    ("runtime", "config", "told"),
    [
        ("twin", {}, "note: the twin goes on, and answers make no sense from there on"),
        ("engine", {}, "note: TensorRT-LLM warns and builds the engine, and answers make no sense from there on"),
        ("llmapi", {}, "note: LLM() warns, and lowers it when it starts"),
        ("vllm", {}, "set it to 8192 or less: vLLM refuses it when it starts"),
        ("engine", {"model_type": "gpt2"}, "set it to 8192 or less"),
    ],
)
def test_a_recipe_longer_than_the_model_is_told_by_runtime(
    shop: Forge, world: World, recipe: Path, runtime: str, config: dict[str, object], told: str
) -> None:
    world.origin.files["config.json"] = json.dumps({**LLAMA, **config}).encode()
    recipe.write_text(TWIN.replace('"twin"', f'"{runtime}"') + "[build]\nmax_seq_len = 100000\n")
    trained = "8192 positions, each learned" if config else "trained for 8192 tokens"
    what, note = f"{trained} (max_position_embeddings)", told.removeprefix("note: ")
    if note != told:
        assert any(each.endswith(f"{what}: {note}") for each in shop.plan([recipe]).notes)
        return
    with pytest.raises(RecipeError) as refused:
        shop.plan([recipe])
    (problem,) = refused.value.problems
    assert problem.what.endswith(what)
    assert problem.hint == told


def test_prompts_longer_than_a_sequence_are_refused_without_an_encoder(shop: Forge, world: World, recipe: Path) -> None:
    recipe.write_text(TWIN + "[build]\nmax_input_len = 600\nmax_seq_len = 512\n")
    with pytest.raises(RecipeError, match=r"build\.max_input_len: is 600, above build\.max_seq_len \(512\)"):
        shop.plan([recipe])
    world.origin.files["config.json"] = json.dumps({**LLAMA, "is_encoder_decoder": True}).encode()
    assert shop.plan([recipe]).steps


def test_a_missing_recipe_is_named(shop: Forge, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.toml"):
        shop.plan([tmp_path / "nowhere.toml"])


def test_a_lock_pins_the_commit_until_asked_to_move(shop: Forge, world: World, recipe: Path) -> None:
    file, changed = shop.lock(recipe)
    assert changed
    assert file == recipe.with_name("tiny.toml.lock")
    pinned = shop.resolve(recipe).facts.source.revision
    world.origin.files["generation_config.json"] = b'{"moved": true}'
    assert shop.lock(recipe) == (file, False)
    assert shop.resolve(recipe, locked=True).facts.source.revision == pinned
    assert shop.lock(recipe, upgrade=True) == (file, True)
    assert shop.resolve(recipe, locked=True).facts.source.revision != pinned


def test_locked_refuses_a_missing_and_a_stale_lock(shop: Forge, world: World, recipe: Path) -> None:
    with pytest.raises(LockError, match="no lock"):
        shop.resolve(recipe, locked=True)
    shop.lock(recipe)
    recipe.write_text(TWIN.replace("acme/tiny", "acme/other"))
    with pytest.raises(LockError, match="stale"):
        shop.resolve(recipe, locked=True)
    shop.resolve(recipe)
    assert any(event.kind == "note" and "stale" in event.text for event in world.events)


def test_a_served_model_is_found_and_asked_with_its_sampling(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    shop.build([recipe], repository=tmp_path / "models")
    running = shop.serve(tmp_path / "models")
    assert set(running.models) == {str(role) for role in COMMON_ROLES}
    target = shop.target("tiny")
    request = target.request("one two three four")
    assert request.max_tokens == 3
    assert "".join(chunk.text for chunk in shop.generate(target.address, request)) == "one two three"
    shop.stop(running)
    with pytest.raises(ServerError, match="no server"):
        shop.target("tiny")


def test_a_recipes_seed_is_every_requests(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    shop.build([recipe], repository=tmp_path / "models")
    shop.serve(tmp_path / "models")
    target = shop.target("tiny")
    assert target.request("a").seed is None
    fixed = replace(target, model=msgspec.structs.replace(target.model, sampling=SamplingTable(seed=5)))
    assert fixed.request("a").seed == 5


def test_an_unknown_model_is_answered_with_what_there_is(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    shop.build([recipe], repository=tmp_path / "models")
    shop.serve(tmp_path / "models")
    with pytest.raises(InferenceError, match="offered: tiny"):
        shop.target("nobody")


def test_two_spellings_of_a_repository_are_one(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    """A deployment's is often ../model-repository, and a server on it was not that of model-repository."""
    built = shop.build([recipe], repository=tmp_path / "recipes" / ".." / "models")
    (tmp_path / "link").symlink_to(tmp_path / "models")
    spellings = [tmp_path / "models", tmp_path / "link", tmp_path / "recipes" / ".." / "models"]
    assert built.repository == tmp_path / "models"
    assert {shop.launch(each, Ports()).repository for each in spellings} == {tmp_path / "models"}
    assert len(shop.launch(spellings, Ports()).several) <= 1, "and of several it is one"
    running = shop.serve(spellings[2])
    assert [shop.server(each) for each in spellings] == [running] * 3


def test_a_repository_without_a_server_names_those_with_one(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError) as caught:
        shop.server(tmp_path / "other")
    assert caught.value.what == "no server runs on this repository: there is no such folder"
    assert caught.value.hint == "start one: `forge serve`"
    shop.build([recipe], repository=tmp_path / "models")
    running = shop.serve(tmp_path / "models")
    assert shop.server(tmp_path / "models") == running
    with pytest.raises(ServerError, match="no server runs on this repository") as caught:
        list(shop.logs(tmp_path / "other"))
    assert caught.value.hint == f"servers run on {tmp_path / 'models'}: name one with --repository"


def test_logs_after_a_stop_are_the_last_ones(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    place = shop.build([recipe], repository=tmp_path / "models").repository
    log = States(shop.home / "servers").log(place)
    log.parent.mkdir(exist_ok=True)
    log.write_text("Started\nunloaded\n")
    assert list(shop.logs(place, follow=True)) == ["Started", "unloaded"]
    assert [list(shop.logs(place, tail=number)) for number in (1, 3, 0)] == [["unloaded"], ["Started", "unloaded"], []]
    assert world.events[-1].text == f"no server runs on {place}: the last one's log ({log})"


def test_what_others_could_have_laid_is_told_at_start(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    shop.build([recipe], repository=tmp_path / "models")
    assert not [event for event in world.events if "may be written to" in event.text]
    shop.home.chmod(0o777)
    for start in (lambda: shop.build([recipe], repository=tmp_path / "models"), lambda: shop.serve(tmp_path / "models")):
        world.events.clear()
        start()
        said = [event.text for event in world.events if "may be written to" in event.text]
        assert len(said) == 1
        assert said[0].startswith(f"{shop.home} may be written to by everybody: what lies there is believed")


def test_gc_takes_what_killed_writers_had_begun(shop: Forge) -> None:
    begun = [
        *("git/pins/.new-abc_1", "images/.new-x", "git/.read-y/half", f"servers/{'a' * 16}.77", "store/locks/.lock-z"),
        f"store/checked/.r.{'0' * 32}",
    ]
    kept = [f"servers/{'a' * 16}.log", "hub/pins/abc.json", "images/.new-young", "store/locks/claims"]
    for name in (*begun, *kept):
        (shop.home / name).parent.mkdir(parents=True, exist_ok=True)
        (shop.home / name).touch()
    for path in (*(shop.home / name for name in (*begun, *kept[:2])), shop.home / "git" / ".read-y"):
        os.utime(path, (1, 1))
    shop.upkeep.collect(dry_run=True)
    assert all((shop.home / name).exists() for name in begun)
    shop.upkeep.collect()
    assert [name for name in begun if (shop.home / name).exists()] == []
    assert [name for name in kept if not (shop.home / name).exists()] == []


def test_a_moved_repository_is_served_where_it_is_now(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    shop.build([recipe], repository=tmp_path / "models")
    (tmp_path / "models").rename(tmp_path / "moved")
    shop.serve(tmp_path / "moved")
    assert str(tmp_path / "moved") in (tmp_path / "moved" / "tensorrt_llm" / "config.pbtxt").read_text()


def test_gc_spares_what_a_repository_uses(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    shop.build([recipe], repository=tmp_path / "models")
    assert shop.store.collect(older_than=None, max_size=None, dry_run=False).removed == ()
    assert all(step.held for step in shop.outlook(shop.plan([recipe])))


def test_a_drafted_recipe_can_be_planned(shop: Forge, tmp_path: Path) -> None:
    text = shop.draft("acme/tiny")
    assert 'family = "llama"' in text
    assert shop.plan([written(tmp_path, "drafted.toml", text)]).steps


def test_a_build_checks_what_it_published_and_nothing_beside_it(
    shop: Forge, world: World, recipe: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    assert not shop.build([recipe], repository=models, options=BuildOptions(prefixed=True)).findings
    world.origin.files["tokenizer.json"] = b'{"model": '
    other = written(tmp_path, "other.toml", TWIN.replace("tiny", "other"))
    built = shop.build([other], repository=models, options=BuildOptions(prefixed=True))
    assert {finding.rule for finding in built.findings if finding.severity == "error"} == {"tokenizer-files"}
    assert built.broken
    assert {finding.rule for finding in shop.check(models).findings if finding.severity == "error"} == {"tokenizer-files"}


def test_what_a_fix_fixed_stays_fixed_when_the_repository_moves(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    models, moved = tmp_path / "models", tmp_path / "moved"
    shop.build([recipe], repository=models)
    config = "tensorrt_llm/config.pbtxt"
    for file in (models / config, models / "_assets/tiny/.configs/tensorrt_llm.pbtxt"):  # as if the entry had had it
        text = file.read_text()
        assert "decoupled: true" in text
        file.write_text(text.replace("decoupled: true", "decoupled: false"))
    report = shop.check(models, fix=True)
    assert len(report.changes) == 1
    assert not report.failed
    fixed = (models / config).read_text()
    models.rename(moved)
    shop.serve(moved)
    assert (moved / config).read_text() == fixed.replace(str(models), str(moved))
    assert shop.check(moved).findings == report.findings
