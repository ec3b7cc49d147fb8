"""The engine runtime from recipe to repository: the image is a fake, the store, the plan and the files are real."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from fake_wiring import ENGINE, World
from fakes import LLAMA, tiny_checkpoint
from forge.api.forge import Forge
from forge.check.check import Checker
from forge.errors import HostError, LockError, Problem, RecipeError
from forge.machine.containers import HOME
from forge.machine.probe import ThisMachine
from forge.plan.steps import Stage
from forge.repository import publish
from forge.schema.manifest import Serving
from forge.schema.values import BuildOptions
from forge.serve.lookup import Target
from nvidias_bls import MODEL, bls

CONVERT = "/app/examples/models/core/llama/convert_checkpoint.py"


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(ENGINE)
    return file


def test_a_build_converts_builds_and_publishes_from_the_images_skeletons(
    shop: Forge, world: World, recipe: Path, tmp_path: Path
) -> None:
    built = shop.build([recipe], repository=tmp_path / "models")
    assert [run.command.argv[0] for run in world.containers.ran] == ["python3", "trtllm-build"]
    assert (built.repository / "_assets/tiny/engines/rank0.engine").is_file()
    config = (built.repository / "tensorrt_llm" / "config.pbtxt").read_text()
    assert "/forge/repository/_assets/tiny/engines" in config
    assert (built.repository / "preprocessing" / "1" / "model.py").is_file()


def test_end_tokens_stated_only_by_the_checkpoints_config_are_sent(
    shop: Forge, world: World, recipe: Path, tmp_path: Path
) -> None:
    """An engine's own config.json has none, and the image's preprocessing sends the tokenizer's."""
    world.origin.files["config.json"] = json.dumps({**LLAMA, "eos_token_id": [1, 7]}).encode()
    world.origin.files["generation_config.json"] = b"{}"
    marks = {str(number): {"content": text} for number, text in ((1, "<eos>"), (7, "<turn>"))}
    world.origin.files["tokenizer_config.json"] = json.dumps({"eos_token": "<eos>", "added_tokens_decoder": marks}).encode()
    built = shop.build([recipe], repository=tmp_path / "models")
    assert Target("localhost:1", built.models[0], built.repository).request("a").ends == ("<turn>",)


def test_the_manifest_says_which_image_serves_it(shop: Forge, recipe: Path, tmp_path: Path) -> None:
    (model,) = shop.build([recipe], repository=tmp_path / "models").models
    assert isinstance(model.serving, Serving)
    assert model.serving.image in model.held
    assert shop.store.find(model.serving.image)


def test_the_image_is_pulled_and_its_tools_read_once(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    world.containers.here = False
    shop.build([recipe], repository=tmp_path / "models")
    shop.build([recipe], repository=tmp_path / "models")
    assert world.containers.pulled == 1
    assert world.made().count("toolchain") == 1
    assert len(world.containers.ran) == 2


def test_requirements_make_a_family_image_that_the_commands_run_in(
    shop: Forge, world: World, recipe: Path, tmp_path: Path
) -> None:
    shop.build([recipe], repository=tmp_path / "models")
    (image,) = world.containers.built
    assert "sentencepiece" in image.dockerfile
    assert {run.image for run in world.containers.ran} == {f"sha256:{image.key[:8]}"}


def test_gc_takes_a_family_image_along_and_no_other_homes(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    shop.build([recipe], repository=tmp_path / "models")
    (mine,) = world.containers.built
    theirs = replace(mine, key="f" * 64, labels={HOME: str(tmp_path / "another")})
    world.containers.built.append(theirs)
    assert shop.upkeep.collect().images == ()
    shop.remove("tiny", tmp_path / "models")
    would = shop.upkeep.collect(dry_run=True)
    assert [name.rpartition(":")[2] for name in would.images] == [mine.key]
    assert world.containers.built == [mine, theirs]
    assert shop.upkeep.collect() == would
    assert world.containers.built == [theirs]


def test_gc_removes_what_it_earlier_left_in_an_absent_engine(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    shop.build([recipe], repository=tmp_path / "models")
    shop.remove("tiny", tmp_path / "models")
    world.containers.away = True
    assert shop.upkeep.collect().images == ()
    world.containers.away = False
    done = shop.upkeep.collect()
    assert (done.artifacts, len(done.images)) == ((), 1)


def test_a_persons_own_dockerfile_takes_the_place_of_forges(
    shop: Forge, world: World, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Dockerfiles").mkdir()
    (tmp_path / "Dockerfiles" / "llama.Dockerfile").write_text("FROM ${base}\nRUN own-mirror ${pip}\n")
    shop.build([recipe], repository=tmp_path / "models")
    assert "own-mirror sentencepiece" in world.containers.built[0].dockerfile


def test_another_image_under_the_same_tag_is_another_build(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    shop.build([recipe], repository=tmp_path / "models")
    world.containers.identity = "sha256:" + "b" * 64
    missing = [step.name for step in shop.outlook(shop.plan([recipe])) if not step.held]
    assert missing == ["image", "toolchain", "tiny: checkpoint", "tiny: engine", "tiny: entry"]


def test_a_flag_unknown_to_the_images_script_is_refused_first(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(ENGINE + "[build.args]\nmax_num_tokenz = 8\n")
    with pytest.raises(RecipeError, match=r"build\.args\.max_num_tokenz.*\n.*did you mean '--max_num_tokens'"):
        shop.build([recipe], repository=tmp_path / "models")
    assert world.containers.ran == []
    assert world.origin.fetches == 0


def test_what_keeps_containers_from_running_is_said_before_the_download(
    shop: Forge, world: World, recipe: Path, tmp_path: Path
) -> None:
    world.containers.problems = (Problem("docker", "no NVIDIA runtime", "install the container toolkit"),)
    recipe.write_text(ENGINE.replace('gpus = "none"', ""))
    with pytest.raises(HostError, match="install the container toolkit"):
        shop.build([recipe], repository=tmp_path / "models")
    assert world.origin.fetches == 0


def test_without_a_gpu_a_build_can_reach_the_conversion(shop: Forge, world: World, recipe: Path) -> None:
    world.containers.problems = (Problem("docker", "no NVIDIA runtime", "install the container toolkit"),)
    recipe.write_text(ENGINE.replace('gpus = "none"', ""))
    made = shop.make([recipe], Stage.CONVERT)
    assert {step.name for step in made.steps} == {"image", "toolchain", "tiny: model", "tiny: checkpoint"}
    assert [run.command.argv[1] for run in world.containers.ran] == [CONVERT]


def test_a_plan_says_when_the_image_has_not_been_read(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    assert "has not been read yet" in shop.plan([recipe]).notes[0]
    shop.build([recipe], repository=tmp_path / "models")
    assert shop.plan([recipe]).notes == ()


def test_a_plan_works_without_a_daemon(shop: Forge, world: World, recipe: Path) -> None:
    world.containers.here = False
    assert shop.plan([recipe]).steps


def test_gemmas_call_is_patched_in_a_copy_laid_over_it(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    world.origin.files = tiny_checkpoint({**LLAMA, "architectures": ["GemmaForCausalLM"]})
    script = CONVERT.replace("llama", "gemma")
    world.containers.scripts[script] = "c = GemmaConfig.from_hugging_face(args.model_dir, args.dtype, quant_config)\n"
    recipe.write_text('family = "gemma"\n' + ENGINE)
    shop.build([recipe], repository=tmp_path / "models")
    assert world.containers.overlaid[script] == world.containers.scripts[script].replace(
        "quant_config", "quant_config=quant_config"
    )
    assert any("GemmaConfig.from_hugging_face" in note for note in shop.plan([recipe]).notes)


def test_a_lock_pins_the_image_and_notices_another(shop: Forge, world: World, recipe: Path) -> None:
    shop.lock(recipe)
    assert shop.resolve(recipe, locked=True).facts.toolchain.identity == world.containers.identity
    world.containers.identity = "sha256:" + "c" * 64
    with pytest.raises(LockError, match="the lock pins"):
        shop.resolve(recipe, locked=True)


def rules_broken(shop: Forge, folder: Path) -> set[str]:
    """But for what is wrong with the engine: the fake's is none."""
    found = Checker(shop.store, ThisMachine({})).check(folder).findings
    return {each.rule for each in found} - {"engine-config"}


BLS = "/app/all_models/inflight_batcher_llm/tensorrt_llm_bls/"


def test_nvidias_bls_under_a_prefix_has_a_subclass_beside_it(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    """And the manifest says so."""
    world.containers.scripts |= {BLS + text.path: text.content for text in bls()}
    (model,) = shop.build([recipe], repository=tmp_path / "models", options=BuildOptions(prefixed=True)).models
    folder = tmp_path / "models" / "tiny-tensorrt_llm_bls"
    assert (folder / "1" / "model.py").read_text() == MODEL
    assert (folder / "1" / "forge_bls.py").is_file()
    assert [edit.file for edit in model.edits] == ["tiny-tensorrt_llm_bls/1/forge_bls.py", "tiny-tensorrt_llm_bls/config.pbtxt"]
    assert publish.inventory(tmp_path / "models").models == (model,)
    config = folder / "config.pbtxt"
    assert rules_broken(shop, tmp_path / "models") == set()
    config.write_text(config.read_text().replace("tiny-postprocessing", "tiny-post"))
    assert rules_broken(shop, tmp_path / "models") == {"bls-target"}
    config.write_text(config.read_text().replace("tiny-post", "tiny-postprocessing").replace("forge_bls.py", "model.py"))
    assert rules_broken(shop, tmp_path / "models") == {"bls-target"}


def test_nvidias_bls_is_left_alone_under_plain_names(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    world.containers.scripts |= {BLS + text.path: text.content for text in bls()}
    (model,) = shop.build([recipe], repository=tmp_path / "models").models
    assert not (tmp_path / "models/tensorrt_llm_bls/1/forge_bls.py").exists()
    assert model.edits == ()


def test_a_bls_ignorant_of_siblings_is_refused_under_a_prefix(shop: Forge, world: World, recipe: Path, tmp_path: Path) -> None:
    """Before the download."""
    world.containers.scripts[f"{BLS}1/model.py"] = 'name = "preprocessing"\n'
    with pytest.raises(RecipeError, match=r"tensorrt_llm_bls/1/model\.py: expected that TritonPythonModel") as caught:
        shop.build([recipe], repository=tmp_path / "others", options=BuildOptions(prefixed=True))
    assert "without --prefixed" in str(caught.value)
    assert world.origin.fetches == 0
    shop.build([recipe], repository=tmp_path / "others")
