"""The llmapi runtime from recipe to repository: the image is a fake, the store, the plan and the files are real."""

import json
import os
import re
from contextlib import nullcontext
from pathlib import Path
from textwrap import dedent

import msgspec
import pytest
import yaml
from hypothesis import given, strategies as st

from fake_wiring import World
from fakes import LLAMA, FakeClient, FakeOrigin, tiny_checkpoint
from forge.api.forge import Forge
from forge.errors import HostError, Problem, RecipeError
from forge.schema.values import COMMON_ROLES, Ports, Recipe, Role, Toolchain
from forge.serve.ready import require_gpus
from forge.trtllm import llm_args
from forge.trtllm.image_table import toolchain

GOLDEN = Path(__file__).parents[1] / "golden" / "llmapi"
RECIPE = """
name = "{name}"
{top}
[source]
hub = "acme/tiny"
[runtime]
kind = "{kind}"
image = "{image}"
[build]
max_batch_size = 4
max_input_len = 100
max_seq_len = 200
"""
PLACES = llm_args.Assets("/forge/repository/_assets/tiny/model", "/forge/repository/_assets/tiny/draft")


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "recipes"


def write(
    folder: Path, more: str = "", *, name: str = "tiny", kind: str = "llmapi", image: str = "25.09", top: str = ""
) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.toml"
    file.write_text(RECIPE.format(name=name, kind=kind, image=image, top=top) + more)
    return file


def files(repository: Path) -> dict[str, str]:
    """What a publish has laid, but for forge's own book-keeping."""
    found = sorted(file for file in repository.rglob("*") if file.is_file())
    named = {file.relative_to(repository).as_posix(): file for file in found}
    return {path: file.read_text() for path, file in named.items() if path != "forge.json" and not path.startswith(".forge")}


def build(shop: Forge, *recipes: Path, into: Path) -> dict[str, str]:
    return files(shop.build(recipes, repository=into).repository)


def test_a_repository_is_nvidias_model_beside_the_checkpoint_itself(shop: Forge, folder: Path, tmp_path: Path) -> None:
    made = build(shop, write(folder), into=tmp_path / "models")
    assert set(made) == {
        *(f"tensorrt_llm/{each}" for each in ("config.pbtxt", "1/model.py", "1/helpers.py", "1/model.yaml")),
        *(f"_assets/tiny/model/{each}" for each in tiny_checkpoint()),
    }
    texts = {path: made[f"tensorrt_llm/{path}"] for path in ("config.pbtxt", "1/model.yaml")}
    if os.environ.get("FORGE_GOLDEN") == "write":
        for path, text in texts.items():
            (GOLDEN / path).parent.mkdir(parents=True, exist_ok=True)
            (GOLDEN / path).write_text(text)
    assert texts == {path: (GOLDEN / path).read_text() for path in texts}


CALL = "answers = self.engine.generate_async(prompt, SamplingParams(**sampling_params), streaming)\n"
NAMED = CALL.replace("streaming)", "streaming=streaming)")
LATER = "match request:\n  of later Python\n"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (CALL, (CALL.replace(" streaming)", " streaming=streaming)"), "applied: generate_async gets streaming by name")),
        (NAMED, (NAMED, "not needed")),
        (LATER, (LATER, "not looked at")),
    ],
    ids=["up to 1.2.1", "later", "of a Python that is not known"],
)
def test_the_images_model_streams_what_it_is_asked_to_stream(
    shop: Forge, world: World, folder: Path, tmp_path: Path, model: str, expected: tuple[str, str]
) -> None:
    text, said = expected
    world.containers.llmapi = {**world.containers.llmapi, "1/model.py": model}
    made = build(shop, write(folder), into=tmp_path / "models")
    assert made["tensorrt_llm/1/model.py"] == text
    assert any(said in note for note in shop.plan([write(folder)]).notes)


def test_the_checkpoint_shares_its_blocks_with_the_store(shop: Forge, folder: Path, tmp_path: Path) -> None:
    built = shop.build([write(folder)], repository=tmp_path / "models")
    assert built.copied == 0
    assert (built.repository / "_assets/tiny/model/model.safetensors").stat().st_nlink > 1


def test_nothing_is_converted_or_built_and_no_gpu_asked(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    world.containers.problems = (Problem("GPU", "there is none", "buy one"),)
    build(shop, write(folder), into=tmp_path / "models")
    assert world.containers.ran == []
    assert set(world.made()) == {"toolchain", "tiny: model", "image", "tiny: entry"}


def test_a_second_build_makes_nothing(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    build(shop, write(folder), into=tmp_path / "models")
    world.events.clear()
    build(shop, write(folder), into=tmp_path / "models")
    assert world.made() == []


@pytest.mark.parametrize("stream", [True, False])
def test_config_and_model_yaml_agree_about_streaming(shop: Forge, folder: Path, tmp_path: Path, stream: bool) -> None:
    made = build(shop, write(folder, f"[serve]\nstream = {str(stream).lower()}\n"), into=tmp_path / "models")
    stated = yaml.safe_load(made["tensorrt_llm/1/model.yaml"])["triton_config"]
    assert stated == {"max_batch_size": 0, "decoupled": stream}
    assert ("decoupled: true" in made["tensorrt_llm/config.pbtxt"]) is stream


def test_several_stand_side_by_side_each_under_its_prefix(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    made = build(shop, write(folder, name="one"), write(folder, name="two"), into=tmp_path / "models")
    for name in ("one", "two"):
        assert f'name: "{name}-tensorrt_llm"' in made[f"{name}-tensorrt_llm/config.pbtxt"]
        stated = yaml.safe_load(made[f"{name}-tensorrt_llm/1/model.yaml"])
        assert stated["model"] == stated["tokenizer"] == f"/forge/repository/_assets/{name}/model"
    assert {path.split("/")[0] for path in made} == {"_assets", "one-tensorrt_llm", "two-tensorrt_llm"}


def test_it_stands_beside_an_engine_of_the_same_image(shop: Forge, folder: Path, tmp_path: Path) -> None:
    engine = write(folder, "", name="built", kind="engine")
    engine.write_text(engine.read_text().replace("[build]", 'gpus = "none"\n[build]'))
    made = build(shop, engine, write(folder, name="one"), into=tmp_path / "models")
    assert {path.split("/")[0] for path in made} == {"_assets", "one-tensorrt_llm", *(f"built-{role}" for role in COMMON_ROLES)}


def test_its_one_model_is_the_one_that_is_asked(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    world.client = FakeClient(models=frozenset({"tensorrt_llm"}))
    (model,) = shop.build([write(folder)], repository=tmp_path / "models").models
    assert model.roles == {Role.TENSORRT_LLM: "tensorrt_llm"}
    assert model.serving
    assert (model.serving.gpus, model.serving.world) == ("all", 1)
    assert model.front == "tensorrt_llm"


def test_a_draft_is_fetched_and_laid_beside_the_model(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    world.origin = FakeOrigin(tiny_checkpoint({**LLAMA, "draft_vocab_size": 32}))
    recipe = write(folder, '[draft]\nhub = "acme/head"\n', top='variant = "eagle"')
    made = build(shop, recipe, into=tmp_path / "models")
    assert "_assets/tiny/draft/model.safetensors" in made
    assert yaml.safe_load(made["tensorrt_llm/1/model.yaml"])["speculative_config"] == {
        "decoding_type": "Eagle",
        "max_draft_len": 3,
        "speculative_model_dir": "/forge/repository/_assets/tiny/draft",
    }


# -- model.yaml


def recipe_of(**tables: object) -> Recipe:
    return msgspec.convert({"name": "tiny", "source": {"hub": "a/b"}, **tables}, Recipe)


def loaded(recipe: Recipe, tools: Toolchain | str = "25.09") -> dict[str, object]:
    found = toolchain(tools) if isinstance(tools, str) else tools
    told: dict[str, object] = yaml.safe_load(llm_args.write(llm_args.stated(recipe, found, PLACES)))
    return told


def test_every_table_of_the_recipe_has_its_arguments() -> None:
    recipe = recipe_of(
        convert={"dtype": "bfloat16", "tp": 4, "pp": 2, "quantization": "fp8_kv"},
        build={"max_num_tokens": 512, "args": {"trust_remote_code": True, "kv_cache_config.max_tokens": 4096}},
        serve={"kv_cache_free_gpu_mem_fraction": 0.4, "enable_kv_cache_reuse": True},
    )
    told = loaded(recipe)
    assert (told["tensor_parallel_size"], told["pipeline_parallel_size"]) == (4, 2)
    assert (told["dtype"], told["backend"], told["max_num_tokens"], told["trust_remote_code"]) == (
        "bfloat16",
        "pytorch",
        512,
        True,
    )
    assert told["kv_cache_config"] == {
        "free_gpu_memory_fraction": 0.4,
        "enable_block_reuse": True,
        "dtype": "fp8",
        "max_tokens": 4096,
    }


@pytest.mark.parametrize(("longest", "tokens"), [(1024, None), (8192, None), (16000, 16000)])
def test_an_allowed_prompt_has_room_in_a_batch(longest: int, tokens: int | None) -> None:
    assert loaded(recipe_of(build={"max_input_len": longest, "max_seq_len": 20000})).get("max_num_tokens") == tokens


@pytest.mark.parametrize(
    ("image", "place"),
    [
        ("25.05", ("pytorch_backend_config", "kv_cache_dtype")),
        ("25.08", ("kv_cache_dtype",)),
        ("25.09", ("kv_cache_config", "dtype")),
        ("sha256:" + "0" * 64, ("kv_cache_config", "dtype")),
    ],
)
def test_the_caches_type_is_said_where_versions_read_it(image: str, place: tuple[str, ...]) -> None:
    found: object = loaded(recipe_of(convert={"quantization": "fp8_kv"}), image)
    for key in place:
        found = msgspec.convert(found, dict[str, object])[key]
    assert found == "fp8"


@pytest.mark.parametrize(
    ("image", "variant", "told"),
    [
        ("25.05", "eagle", {"decoding_type": "Eagle", "max_draft_len": 3, "pytorch_eagle_weights_path": PLACES.draft}),
        ("25.08", "eagle", {"decoding_type": "Eagle", "max_draft_len": 3, "pytorch_weights_path": PLACES.draft}),
        ("25.08", "draft-target", {"decoding_type": "DraftTarget", "max_draft_len": 4, "pytorch_weights_path": PLACES.draft}),
        ("25.12", "draft-target", {"decoding_type": "DraftTarget", "max_draft_len": 4, "speculative_model_dir": PLACES.draft}),
        ("26.03", "draft-target", {"decoding_type": "Draft_Target", "max_draft_len": 4, "speculative_model_dir": PLACES.draft}),
    ],
)
def test_speculation_is_said_in_the_versions_own_words(image: str, variant: str, told: dict[str, object]) -> None:
    assert loaded(recipe_of(variant=variant, draft={"hub": "a/d"}), image)["speculative_config"] == told


def test_a_list_written_as_text_arrives_as_a_list() -> None:
    told = loaded(recipe_of(build={"args": {"cuda_graph_config.batch_sizes": "[1, 2, 4]"}}))
    assert told["cuda_graph_config"] == {"batch_sizes": [1, 2, 4]}


VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aä😀:#-'\"\\{[ 1eE.~"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc_", min_size=1), VALUES, max_size=4))
def test_what_is_written_is_what_a_reader_of_yaml_reads(stated: dict[str, object]) -> None:
    assert yaml.safe_load(llm_args.write(stated)) == stated


def test_the_same_recipe_gives_the_same_text() -> None:
    texts = {json.dumps(loaded(recipe_of(build={"args": {"attn_backend": "TRTLLM"}}))) for _ in range(2)}
    assert len(texts) == 1


# -- what cannot work is said before anything is fetched


@pytest.mark.parametrize(
    ("top", "more", "where", "fix"),
    [
        ('variant = "medusa"', '[draft]\nhub = "a/d"\n[convert]\ndtype = "float16"\n', "variant", 'variant = "eagle"'),
        ('variant = "redrafter"', '[draft]\nhub = "a/d"\n[convert]\ndtype = "float16"\n', "variant", 'variant = "eagle"'),
        ('variant = "lookahead"', "", "variant", '"speculative_config.decoding_type" = "NGram"'),
        ('variant = "eagle"', '[draft]\nhub = "a/d"\n', "draft", "EAGLE3"),
        (
            'variant = "eagle"',
            '[draft]\nhub = "a/d"\n[speculation]\nnum_eagle_layers = 4\n',
            "speculation.num_eagle_layers",
            "away",
        ),
        ("", '[convert]\nquantization = "int8_weight_only"\n', "convert.quantization", "fp8_kv"),
        (
            "",
            '[convert]\nquantization = "fp8"\n[convert.calibration]\nhub = "a/t"\n',
            "convert.quantization",
            "Model Optimizer",
        ),
        ("", '[convert]\nquantization = "fp8"\n[convert.calibration]\nhub = "a/t"\n', "convert.calibration", "take it away"),
        ("", "[convert.args]\nload_by_shard = true\n", "convert.args", "take them away"),
        ("", "[build.args]\ngemm_plugin = 'auto'\n", "build.args.gemm_plugin", "trtllm-build"),
        ("", "[build.args]\ntrust_remote_kode = true\n", "build.args.trust_remote_kode", "did you mean 'trust_remote_code'"),
        ("", "[build.args]\nuse_cuda_graph = true\n", "build.args.use_cuda_graph", "write cuda_graph_config"),
        ("", "[build.args]\nquant_config = '{}'\n", "build.args.quant_config", "before TensorRT-LLM 1.0"),
        ("", "[build.args]\ntensor_parallel_size = 2\n", "build.args.tensor_parallel_size", "set convert.tp"),
        ("", "[build.args]\nkv_cache_config = '{}'\n", "build.args.kv_cache_config", '"kv_cache_config.KEY"'),
        ("", "[build.args]\nmoe_config = '[1,'\n", "build.args.moe_config", '"[1, 2, 4]"'),
        ("", "[build.args]\nmoe_config = 'x'\n'moe_config.backend' = 'y'\n", "build.args", ""),
        ("", '[build.args]\nload_format = "\\u0085"\n', "build.args.load_format", "take them away"),
        ("", "[serve]\ninstances = 2\n", "serve.instances", "take it away"),
        ("", "[serve]\nmax_queue_delay_microseconds = 2\n", "serve.max_queue_delay_microseconds", "take it away"),
        ("", "[serve.parameters.preprocessing]\nx = 2\n", "serve.parameters.preprocessing", "take it away"),
        ("", "[serve.parameters.tensorrt_llm]\ntriton_max_batch_size = 2\n", "triton_max_batch_size", "max_batch_size"),
    ],
)
def test_a_recipe_it_cannot_serve_is_told_the_change(
    world: World, folder: Path, top: str, more: str, where: str, fix: str
) -> None:
    text = RECIPE.format(name="tiny", kind="llmapi", image="25.09", top=top)
    recipe = write(folder, top=top)
    recipe.write_text(text + more)
    with pytest.raises(RecipeError) as caught:
        world.shop(folder / "home").plan([recipe])
    found = [problem for problem in caught.value.problems if problem.where.endswith(where)]
    assert found, caught.value
    assert any(fix in problem.hint for problem in found), found
    assert world.origin.fetches == 0


@pytest.mark.parametrize(("here", "refused"), [(1, True), (2, False)])
def test_more_ranks_than_gpus_are_refused_in_one_process(
    shop: Forge, folder: Path, tmp_path: Path, here: int, refused: bool
) -> None:
    shop.build([write(folder, "[convert]\ntp = 2\n")], repository=tmp_path / "models")
    launch = shop.launch(tmp_path / "models", Ports())
    assert (launch.world, launch.ranks, launch.gpus) == (1, 2, "all")
    with pytest.raises(HostError, match=r"in 2 parts.*and 1 are here") if refused else nullcontext():
        require_gpus(launch, lambda: here)


def test_beams_are_refused(shop: Forge, folder: Path) -> None:
    recipe = write(folder)
    recipe.write_text(recipe.read_text().replace("max_batch_size = 4", "max_batch_size = 4\nmax_beam_width = 2"))
    with pytest.raises(RecipeError, match="offers no beams"):
        shop.plan([recipe])


def test_a_model_with_an_encoder_is_refused(shop: Forge, world: World, folder: Path) -> None:
    world.origin = FakeOrigin(tiny_checkpoint({**LLAMA, "is_encoder_decoder": True}))
    with pytest.raises(RecipeError, match="has an encoder too"):
        shop.plan([write(folder)])


def test_a_sampling_word_the_images_model_lacks_is_refused(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    recipe = write(folder, "[sampling]\ntemperature = 0.5\nstop = ['x']\nmin_tokens = 3\n")
    with pytest.raises(RecipeError, match=r"sampling\.min_tokens.*\n.*max_tokens, stop, temperature") as caught:
        shop.build([recipe], repository=tmp_path / "models")
    assert len(caught.value.problems) == 1
    assert world.origin.fetches == 0


@pytest.mark.parametrize("image", ["25.04", "24.10"])
def test_an_image_before_llmapi_is_refused_with_fitting_ones(shop: Forge, folder: Path, image: str) -> None:
    with pytest.raises(RecipeError, match=r"cannot serve the llmapi runtime[^\n]*\n.*25\.05"):
        shop.plan([write(folder, image=image)])


def test_an_image_of_ones_own_without_the_model_is_refused(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    world.containers.llmapi = {}
    with pytest.raises(RecipeError, match="holds no llmapi model"):
        shop.build([write(folder, image="acme/triton:1")], repository=tmp_path / "models")


def test_an_argument_only_the_image_knows_is_told_and_passed(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    world.containers.trtllm = ""
    recipe = write(folder, image="acme/triton:1")
    recipe.write_text(recipe.read_text() + "args = { brand_new = 1 }\n")
    made = build(shop, recipe, into=tmp_path / "models")
    assert yaml.safe_load(made["tensorrt_llm/1/model.yaml"])["brand_new"] == 1
    assert any("brand_new" in note for note in shop.plan([recipe]).notes)


# -- an image that has left engines behind


def engine(folder: Path, more: str = "", top: str = "") -> Path:
    recipe = write(folder, kind="engine", image="acme/triton:2", top=top)
    recipe.write_text(recipe.read_text().replace("[build]", 'gpus = "none"\n[build]') + more)
    return recipe


def test_an_engine_on_an_image_without_engines_moves_here(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    world.containers.engine_path = False
    recipe = engine(folder)
    with pytest.raises(RecipeError, match=r"no longer holds(.*\n)+.*runtime\.kind = \"llmapi\"; or take an image up to"):
        shop.build([recipe], repository=tmp_path / "models")
    assert world.origin.fetches == 0
    recipe.write_text(recipe.read_text().replace('kind = "engine"', 'kind = "llmapi"'))
    assert build(shop, recipe, into=tmp_path / "models")


def test_the_move_names_every_other_key_that_has_to_change(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    world.containers.engine_path = False
    recipe = engine(folder, "[draft]\nhub = 'a/d'\n[convert]\ndtype = 'float16'\n", top='variant = "medusa"')
    with pytest.raises(RecipeError, match=r'; variant: take variant = "eagle"'):
        shop.build([recipe], repository=tmp_path / "models")


def test_an_image_with_neither_path_is_none_of_nvidias(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    world.containers.engine_path = False
    world.containers.llmapi = {}
    with pytest.raises(RecipeError, match="take an image of NVIDIA's"):
        shop.build([engine(folder)], repository=tmp_path / "models")


def test_a_key_stands_on_the_recipes_arguments(shop: Forge, folder: Path, tmp_path: Path) -> None:
    build(shop, write(folder), into=tmp_path / "models")
    other = write(folder, "[serve]\nkv_cache_free_gpu_mem_fraction = 0.5\n")
    missing = [step.name for step in shop.outlook(shop.plan([other])) if not step.held]
    assert missing == ["tiny: entry"]


def test_a_config_saying_more_later_is_said_once(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    later = "max_batch_size: 64\nmodel_transaction_policy {\n  decoupled: False\n}\n"
    world.containers.llmapi["config.pbtxt"] += later
    made = build(shop, write(folder), into=tmp_path / "models")["tensorrt_llm/config.pbtxt"]
    assert "decoupled: true" in made
    assert "64" not in made


# -- docs/llmapi.md

PAGE = (Path(__file__).parents[2] / "docs" / "llmapi.md").read_text(encoding="utf-8")
EXAMPLES = [dedent(text) for text in re.findall(r"^ *```toml\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_pages_examples_are_recipes_that_plan(shop: Forge, folder: Path, text: str) -> None:
    recipe = write(folder)
    whole = text if text.startswith("name") else RECIPE.format(name="tiny", kind="llmapi", image="25.09", top="") + text
    recipe.write_text(whole)
    assert shop.plan([recipe]).entries


def test_the_page_lists_every_key_that_stands_for_an_argument() -> None:
    owners = {owner for owner in llm_args.names().set_by_forge.values() if owner}
    missing = [owner for owner in owners if owner.rpartition(".")[2].strip("[]") not in PAGE]
    assert missing == []
