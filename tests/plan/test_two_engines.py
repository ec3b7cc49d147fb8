"""Recipes that become two engines: whose folder each model is told, and what requests to a model with a draft carry."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from fake_wiring import World
from fakes import LLAMA, tiny_checkpoint
from forge.api.forge import Forge
from forge.build.published_model import published
from forge.plan.plan import plan
from forge.plan.resolved import Resolved
from forge.plan.steps import Assemble, Entry
from forge.repository import config as repository
from forge.schema.manifest import PublishedModel
from forge.schema.values import BuildOptions, Checkpoint, Recipe, Role, RuntimeKind
from forge.serve.lookup import Target
from forge.trtllm.toolchain import Tooling

DRAFTED = """
name = "pair"
family = "llama"
variant = "draft-target"
[source]
hub = "acme/large"
[draft]
hub = "acme/small"
[runtime]
kind = "engine"
gpus = "none"
"""
T5 = """
name = "pair"
family = "t5"
[source]
hub = "acme/t5"
[runtime]
kind = "engine"
gpus = "none"
[convert]
dtype = "bfloat16"
"""
TOOLING = Tooling(repository.skeletons(), (), {}, {})


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


T5_CONFIG = {**LLAMA, "architectures": ["T5ForConditionalGeneration"]}


def entry(world: World, folder: Path, text: str, runtime: RuntimeKind | None = None) -> tuple[Resolved, Entry]:
    world.origin.files = tiny_checkpoint(T5_CONFIG if text == T5 else LLAMA)
    shop = world.shop(folder / "home")
    recipe = folder / "pair.toml"
    recipe.write_text(text)
    resolved = shop.resolve(recipe, runtime=runtime)
    if runtime is None:
        resolved = replace(resolved, tooling=TOOLING)
    (made,) = plan([resolved]).entries
    return resolved, made


def settings(made: Entry) -> repository.Settings:
    assert isinstance(made.step.action, Assemble)
    return made.step.action.settings


@pytest.mark.parametrize(("text", "main"), [(DRAFTED, "target"), (T5, "decoder")])
def test_preprocessing_is_told_the_folder_of_the_engine_that_answers(
    world: World, tmp_path: Path, text: str, main: str
) -> None:
    told = settings(entry(world, tmp_path, text)[1])
    assert told[Role.PREPROCESSING]["engine_dir"] == f"/forge/repository/_assets/pair/engines/{main}"
    assert told[Role.PREPROCESSING]["engine_dir"] == told[Role.TENSORRT_LLM]["engine_dir"]


def asked(model: PublishedModel) -> int | None:
    return Target("127.0.0.1:8001", model, Path("models")).request("hello").num_draft_tokens


@pytest.mark.parametrize(("more", "count"), [("", 10), ("[speculation]\nmax_draft_len = 4\n", 4)])
def test_a_request_with_a_draft_says_how_many_guesses(world: World, tmp_path: Path, more: str, count: int) -> None:
    assert asked(published(*entry(world, tmp_path, DRAFTED + more))) == count


def test_a_request_to_any_other_model_says_nothing_of_it(world: World, tmp_path: Path) -> None:
    assert asked(published(*entry(world, tmp_path, T5))) is None
    assert asked(published(*entry(world, tmp_path, DRAFTED, RuntimeKind.TWIN))) is None


def test_a_twin_of_both_names_no_draft_but_takes_requests(shop: Forge, tmp_path: Path) -> None:
    recipe = tmp_path / "pair.toml"
    recipe.write_text(DRAFTED)
    built = shop.build([recipe], repository=tmp_path / "models", options=BuildOptions(runtime=RuntimeKind.TWIN))
    config = (built.repository / "tensorrt_llm_bls" / "config.pbtxt").read_text()
    assert "tensorrt_llm_draft" not in config
    assert 'name: "num_draft_tokens"' in config
    assert 'name: "use_draft_logits"' in config


def test_what_eagles_script_cannot_read_the_pytorch_path_may(shop: Forge, tmp_path: Path) -> None:
    import forge_eagle
    from forge.recipe import reader as recipes

    text = 'name = "m"\nvariant = "eagle"\n[source]\nhub = "a/b"\n[draft]\nhub = "a/c"\n[convert]\ntp = 2\n'
    wanted: Recipe = recipes.read(text, "m.toml")
    qwen = Checkpoint({"architectures": ["Qwen2ForCausalLM"], "vocab_size": 8})
    assert forge_eagle.forge_check(wanted, qwen, Checkpoint())
    scriptless = recipes.read(text + '[runtime]\nkind = "llmapi"\n', "m.toml")
    assert forge_eagle.forge_check(scriptless, qwen, Checkpoint()) == ()
    assert forge_eagle.forge_check(scriptless, qwen, Checkpoint({"vocab_size": 9}))
    assert recipes.read(text.replace("tp = 2", "pp = 2") + '[runtime]\nkind = "llmapi"\n', "m.toml").convert.pp == 2
