"""What an image can do for a checkpoint, said by a plan before anything is fetched."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from fake_wiring import World
from fakes import LLAMA, tiny_checkpoint
from forge.api.forge import Forge
from forge.errors import RecipeError
from forge.fit import model_shape
from forge.fit.weights import terms, weights
from forge.schema.config_json import Quantized, quantized
from forge.schema.values import ConvertTable, Recipe, Source

RECIPE = """
name = "m"
[source]
hub = "owner/model"
[runtime]
kind = "{kind}"
image = "{image}"
{runtime}
[convert]
{convert}
[build]
max_batch_size = 1
max_input_len = 8
max_seq_len = 16
{build}
"""
GPTQ: Mapping[str, object] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
MINE = "registry.example/team/triton:7"


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


def write(folder: Path, *, kind: str = "engine", image: str = "25.08", **tables: str) -> Path:
    said = {"runtime": "", "convert": "", "build": "", **tables}
    recipe = folder / "m.toml"
    recipe.write_text(RECIPE.format(kind=kind, image=image, **said))
    return recipe


def refused(shop: Forge, recipe: Path) -> str:
    with pytest.raises(RecipeError) as error:
        shop.plan([recipe])
    return str(error.value)


def hold(world: World, **config: object) -> None:
    world.origin.files = tiny_checkpoint({**LLAMA, **config})


@pytest.mark.parametrize(
    ("architecture", "image", "missing"),
    [
        ("Qwen3ForCausalLM", "25.03", "TensorRT-LLM 0.18.0 has no engine path for Qwen3ForCausalLM: it came with 1.0"),
        ("Qwen3ForCausalLM", "25.08", "TensorRT-LLM 0.21.0 has no engine path"),
        ("Qwen3MoeForCausalLM", "25.06", "no engine path for Qwen3MoeForCausalLM"),
        ("Gemma3ForCausalLM", "25.04", "TensorRT-LLM 0.18.2 has no engine path for Gemma3ForCausalLM: it came with 0.19"),
    ],
)
def test_an_image_older_than_the_architecture_is_refused(
    shop: Forge, world: World, tmp_path: Path, architecture: str, image: str, missing: str
) -> None:
    hold(world, architectures=[architecture])
    said = refused(shop, write(tmp_path, image=image))
    assert missing in said
    assert "take an image from '25." in said


def test_the_runtime_that_the_same_image_can_is_named(shop: Forge, world: World, tmp_path: Path) -> None:
    hold(world, architectures=["Qwen3ForCausalLM"])
    assert 'runtime.kind = "llmapi", which this image can' in refused(shop, write(tmp_path, image="25.08"))
    assert "llmapi" not in refused(shop, write(tmp_path, image="25.03"))
    shop.plan([write(tmp_path, image="25.08", kind="llmapi")])
    shop.plan([write(tmp_path, image="25.09")])


def test_a_family_is_held_to_the_checkpoints_architecture(shop: Forge, world: World, tmp_path: Path) -> None:
    hold(world, architectures=["Gemma2ForCausalLM"])
    recipe = write(tmp_path)
    recipe.write_text('family = "llama"\n' + recipe.read_text())
    assert 'this checkpoint is Gemma2ForCausalLM\n    say family = "gemma"' in refused(shop, recipe)


def test_an_unclaimed_architecture_is_left_to_the_named_family(shop: Forge, world: World, tmp_path: Path) -> None:
    hold(world, architectures=["YetAnotherForCausalLM"])
    recipe = write(tmp_path)
    recipe.write_text('family = "llama"\n' + recipe.read_text())
    assert any("does not name YetAnotherForCausalLM" in note for note in shop.plan([recipe]).notes)


# -- whose version nobody has stated


def test_an_image_of_ones_own_is_asked_for_its_version(shop: Forge, world: World, tmp_path: Path) -> None:
    world.containers.trtllm = "0.18.2"
    assert shop.resolve(write(tmp_path, image=MINE)).facts.toolchain.examples == "/app/examples"
    built = shop.build([write(tmp_path, image=MINE)], repository=tmp_path / "models")
    assert built.repository.is_dir()
    assert world.containers.ran[0].command.argv[1] == "/app/examples/llama/convert_checkpoint.py"


def test_a_pulled_image_is_asked_before_anything_is_planned(shop: Forge, world: World, tmp_path: Path) -> None:
    world.containers.here, world.containers.trtllm = False, "0.18.2"
    recipe = write(tmp_path, image=MINE)
    assert any("nobody has said which TensorRT-LLM" in note for note in shop.plan([recipe]).notes)
    shop.build([recipe], repository=tmp_path / "models")
    assert world.containers.ran[0].command.argv[1] == "/app/examples/llama/convert_checkpoint.py"


def test_an_image_without_version_is_refused_until_one_is_stated(shop: Forge, world: World, tmp_path: Path) -> None:
    world.containers.trtllm = ""
    assert "does not say which TensorRT-LLM it holds" in refused(shop, write(tmp_path, image=MINE))
    shop.plan([write(tmp_path, image=MINE, runtime='trtllm = "0.21.0"')])


def test_a_lock_remembers_the_version_of_an_absent_image(shop: Forge, world: World, tmp_path: Path) -> None:
    world.containers.trtllm = "0.18.2"
    recipe = write(tmp_path, image=MINE)
    shop.lock(recipe)
    world.containers.here = False
    assert shop.resolve(recipe, locked=True).facts.toolchain.examples == "/app/examples"


# -- checkpoints that are quantized already


@pytest.mark.parametrize(
    ("stated", "files", "found"),
    [
        (GPTQ, (), Quantized("gptq", 4, 128)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, (), Quantized("awq", 4, 64)),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, (), Quantized("fp8", 8)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, (), Quantized("bitsandbytes", 4)),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, (), Quantized("modelopt nvfp4", 4, 16)),
        (None, ("config.json", "hf_quant_config.json"), Quantized("modelopt")),
        (None, ("config.json",), None),
        ("nonsense", (), None),
    ],
)
def test_config_json_says_how_weights_were_quantized(stated: object, files: tuple[str, ...], found: Quantized | None) -> None:
    assert quantized({"quantization_config": stated} if stated else {}, files) == found


def test_a_packed_checkpoint_is_known_and_read_as_it_is(shop: Forge, world: World, tmp_path: Path) -> None:
    hold(world, quantization_config=GPTQ)
    notes = shop.plan([write(tmp_path, convert='dtype = "float16"')]).notes
    assert "m: the checkpoint's weights are quantized already (gptq, 4 bits in groups of 128)" in "\n".join(notes)
    said = shop.plan([write(tmp_path, convert='quantization = "int4_gptq"')])
    assert said.notes


@pytest.mark.parametrize(
    ("config", "convert", "problem"),
    [
        ({"quantization_config": {**GPTQ, "desc_act": True}}, "", "desc_act = true, which NVIDIA's scripts do not implement"),
        ({"quantization_config": GPTQ}, 'quantization = "int4_weight_only"', "the checkpoint is quantized already (gptq"),
        ({}, 'quantization = "int4_gptq"', "is 'int4_gptq', and the checkpoint is not packed by GPTQ"),
        (
            {"quantization_config": GPTQ, "architectures": ["Phi3ForCausalLM"]},
            "",
            "is quantized already (gptq, 4 bits in groups of 128), and this family's conversion script does not read that",
        ),
    ],
)
def test_what_no_script_can_do_with_quantized_weights_is_refused(
    shop: Forge, world: World, tmp_path: Path, config: Mapping[str, object], convert: str, problem: str
) -> None:
    hold(world, **config)
    assert problem in refused(shop, write(tmp_path, convert=convert))


def test_packed_weights_are_weighed_as_they_lie() -> None:
    config: dict[str, object] = {
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "vocab_size": 1000,
    }
    recipe = Recipe(name="m", source=Source(hub="owner/model"), convert=ConvertTable(dtype="float16"))
    sizes: list[int] = []
    for said in (config, {**config, "quantization_config": GPTQ}):
        shape = model_shape.read(said)
        sizes.append(weights(model_shape.tensors(said), shape, terms(recipe, shape)).total)
    assert 0.25 < sizes[1] / sizes[0] < 0.4


# -- paths in flags


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"build": 'args = { lora_dir = "adapter" }'}, "build.args.lora_dir: names 'adapter', which the command will not see"),
        ({"build": 'args = { input_timing_cache = "/home/me/cache" }'}, "build.args.input_timing_cache"),
        ({"convert": 'args = { quant_ckpt_path = "packed.safetensors" }'}, "convert.args.quant_ckpt_path"),
        ({"convert": 'args = { anything = "../here" }'}, "neither mounted nor hashed"),
    ],
)
def test_a_path_that_no_step_mounts_is_refused(shop: Forge, tmp_path: Path, tables: dict[str, str], told: str) -> None:
    assert told in refused(shop, write(tmp_path, **tables))


def test_a_path_inside_the_image_reaches_the_command(shop: Forge, tmp_path: Path) -> None:
    recipe = write(tmp_path, build='args = { model_cls_file = "/app/mine.py" }')
    shop.plan([recipe])


# -- what the engine would have to be built for


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("[serve.parameters.tensorrt_llm]\ncross_kv_cache_fraction = 0.5\n", "this model has a decoder alone"),
        ("[serve.parameters.tensorrt_llm]\ndecoding_mode = 'lookahead'\n", 'set variant = "lookahead"'),
        ("[serve.parameters.tensorrt_llm]\ndecoding_mode = 'medusa'\n", 'set variant = "medusa"'),
        ("[serve.parameters.tensorrt_llm_bls]\ntensorrt_llm_draft_model_name = 'd'\n", 'set variant = "draft-target"'),
        ("[build.args]\nkv_cache_type = 'disabled'\n", "build.args.kv_cache_type: is off, and batching in flight needs"),
        ("[build.args]\nremove_input_padding = false\n", "build.args.remove_input_padding"),
        ("[build.args]\ngpt_attention_plugin = 'disable'\n", "build.args.gpt_attention_plugin"),
    ],
)
def test_what_the_backend_would_refuse_the_plan_refuses(shop: Forge, tmp_path: Path, more: str, told: str) -> None:
    recipe = write(tmp_path)
    recipe.write_text(recipe.read_text() + more)
    assert told in refused(shop, recipe)


def test_an_engine_that_batches_in_turns_needs_no_pages(shop: Forge, tmp_path: Path) -> None:
    recipe = write(tmp_path)
    more = "[build.args]\nremove_input_padding = false\n[serve.parameters.tensorrt_llm]\nbatching_strategy = 'V1'\n"
    recipe.write_text(recipe.read_text() + more)
    shop.plan([recipe])
