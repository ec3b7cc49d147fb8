"""LoRA adapters of an engine as they are planned and laid: what it is built with, what is refused, and the arrays' numbers."""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import originals
from fake_wiring import World
from fakes import LLAMA, tiny_adapter
from forge.api.forge import Forge
from forge.build import adapter_arrays
from forge.client.lora import LoraTask, array
from forge.errors import InferenceError, RecipeError, StepError
from forge.plan import engine_adapters
from forge.plan.steps import Assemble, Run
from forge.repository import config
from forge.schema.adapters import ARRAYS
from forge.schema.values import Role
from forge.trtllm import lora
from lora_kit import SHAPE, shape, weights

Array = NDArray[np.generic]
QUERIES = "model.layers.0.self_attn.q_proj"
RECIPE = """
name = "tiny"
{top}
[source]
hub = "acme/tiny"
[runtime]
kind = "engine"
image = "25.08"
gpus = "none"
[convert]
dtype = "float16"
{more}
"""
GOOD = tiny_adapter(4, QUERIES, (8, 8))
LORA = '[[lora]]\nname = "sql"\nhub = "acme/sql"\n'


def write(folder: Path, more: str = LORA, top: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tiny.toml"
    file.write_text(RECIPE.format(more=more, top=top))
    return file


@pytest.fixture
def engine_world(world: World) -> World:
    """A Llama whose sizes are known, and an adapter over its queries."""
    world.origin.files["config.json"] = json.dumps({**LLAMA, **SHAPE, "num_hidden_layers": 2}).encode()
    world.origin.files["model.safetensors"] = weights(
        self_attn__q_proj=(8, 8), self_attn__k_proj=(4, 8), self_attn__o_proj=(8, 16), mlp__up_proj=(24, 8), mlp__experts=(8, 8)
    )
    world.origin.adapters["acme/sql"] = GOOD
    return world


@pytest.fixture
def shop(engine_world: World, tmp_path: Path) -> Forge:
    return engine_world.shop(tmp_path / "home")


def refused(shop: Forge, recipe: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        shop.plan([recipe])
    return str(caught.value)


# -- the plan


def test_the_engine_is_built_for_modules_and_largest_rank(shop: Forge, engine_world: World, tmp_path: Path) -> None:
    engine_world.origin.adapters["acme/large"] = tiny_adapter(16, "model.layers.1.mlp.up_proj", (24, 8))
    more = f'{LORA}[[lora]]\nname = "large"\nhub = "acme/large"\nrank = 20\n'
    (step,) = [each for each in shop.plan([write(tmp_path / "r", more)]).steps if each.name == "tiny: engine"]
    assert isinstance(step.action, Run)
    argv = step.action.commands[0].argv
    at = argv.index("--lora_plugin")
    words = (
        "--lora_plugin",
        "auto",
        "--lora_target_modules",
        "attn_q",
        "attn_k",
        "attn_v",
        "mlp_gate",
        "--max_lora_rank",
        "20",
    )
    assert argv[at : at + len(words)] == words, "queries, keys and values are enabled together"


def test_adapters_lie_under_task_ids_the_server_is_told(shop: Forge, tmp_path: Path) -> None:
    root = shop.build([write(tmp_path / "r")], repository=tmp_path / "models").repository
    assert json.loads((root / "_assets/tiny/loras.json").read_text()) == {"sql": 1}
    assert sorted(each.name for each in (root / "_assets/tiny/loras/1").iterdir()) == sorted(ARRAYS)
    config = (root / "tensorrt_llm/config.pbtxt").read_text()
    for key, value in {
        "lora_prefetch_dir": "/forge/repository/_assets/tiny/loras",
        "lora_cache_max_adapter_size": "4",
        "lora_cache_optimal_adapter_size": "4",
        "lora_cache_gpu_memory_fraction": "0.5",
        "lora_cache_host_memory_bytes": str(2**30),
    }.items():
        assert f'key: "{key}"\n  value {{\n    string_value: "{value}"' in config
    assert not [each for each in shop.check(root).findings if each.rule.startswith("lora")]


def test_a_recipes_own_word_on_the_caches_wins(shop: Forge, tmp_path: Path) -> None:
    more = f"[serve.parameters.tensorrt_llm]\nlora_cache_gpu_memory_fraction = 0.2\n{LORA}"
    (entry,) = shop.plan([write(tmp_path / "r", more)]).entries
    assert isinstance(entry.step.action, Assemble)
    assert entry.step.action.settings[Role.TENSORRT_LLM]["lora_cache_gpu_memory_fraction"] == 0.2


def test_without_adapters_nothing_is_said_of_them(shop: Forge, tmp_path: Path) -> None:
    (entry,) = shop.plan([write(tmp_path / "r", "")]).entries
    assert isinstance(entry.step.action, Assemble)
    assert not [key for key in entry.step.action.settings[Role.TENSORRT_LLM] if "lora" in key]
    assert not [text.path for text in entry.step.action.texts]


@pytest.mark.parametrize(
    ("made", "more", "told"),
    [
        (tiny_adapter(4, "lm_head", (8, 8)), "", "it changes lm_head"),
        (tiny_adapter(4, "model.q_proj", (8, 8)), "", "it changes model.q_proj"),
        (tiny_adapter(4, QUERIES, (9, 8)), "", "it changes model.layers.0.self_attn.q_proj as 9 x 8"),
        (tiny_adapter(4, QUERIES, (8, 8), use_dora=True), "", "use_dora, which forge does not lay for engines"),
        (tiny_adapter(4, QUERIES, (8, 8), modules_to_save=["lm_head"]), "", "modules_to_save"),
        (tiny_adapter(8, QUERIES, (8, 8)), "rank = 4\n", "its rank (r) is 8, above the 4"),
        (
            tiny_adapter(4, QUERIES, (8, 8)),
            "[build]\nargs = { max_lora_rank = 8 }\n",
            "build.args.max_lora_rank: forge sets this flag",
        ),
        (
            tiny_adapter(4, QUERIES, (8, 8)),
            "[build]\nargs = { lora-plugin = 'auto' }\n",
            "build.args.lora-plugin: forge sets this flag",
        ),
    ],
)
def test_what_an_engine_cannot_have_is_refused_before_fetching(
    shop: Forge, engine_world: World, tmp_path: Path, made: dict[str, bytes], more: str, told: str
) -> None:
    engine_world.origin.adapters["acme/sql"] = made
    text = f"{more}{LORA}" if more.startswith("[") else f"{LORA}{more}"
    assert told in refused(shop, write(tmp_path / "r", text))
    assert engine_world.origin.fetches == 0


def test_o_proj_is_refused_where_heads_are_too_wide(shop: Forge, engine_world: World, tmp_path: Path) -> None:
    """Wider than the hidden state."""
    wide = {**LLAMA, **SHAPE, "head_dim": 4, "num_hidden_layers": 2}
    engine_world.origin.files["config.json"] = json.dumps(wide).encode()
    engine_world.origin.adapters["acme/sql"] = tiny_adapter(4, "model.layers.0.self_attn.o_proj", (8, 16))
    assert "TensorRT-LLM takes its attn_dense to have 8 and 8" in refused(shop, write(tmp_path / "r"))


@pytest.mark.parametrize(
    ("dtype", "held", "told"),
    [
        ("bfloat16", "", "the engine would be of bfloat16"),
        ("float32", "", "the engine would be of float32"),
        ("auto", "bfloat16", "the engine would be of bfloat16"),
        ("auto", "float16", ""),
        ("auto", "float32", ""),
        ("auto", "", ""),
        ("float16", "bfloat16", ""),
    ],
)
def test_an_engine_of_another_type_than_float16_takes_none(
    shop: Forge, engine_world: World, tmp_path: Path, dtype: str, held: str, told: str
) -> None:
    stated = {**LLAMA, **SHAPE, "num_hidden_layers": 2, "torch_dtype": held or None}
    engine_world.origin.files["config.json"] = json.dumps(stated).encode()
    recipe = write(tmp_path / "r")
    recipe.write_text(recipe.read_text().replace('"float16"', f'"{dtype}"'))
    if told:
        assert told in refused(shop, recipe)
    else:
        notes = shop.plan([recipe]).notes
        assert any("the engine has to be of that type" in note for note in notes) == (dtype == "auto" and not held)


def test_a_variant_and_a_family_without_modules_say_so(shop: Forge, engine_world: World, tmp_path: Path) -> None:
    speculating = write(tmp_path / "r", f"[speculation]\nwindow_size = 4\n{LORA}", 'variant = "lookahead"')
    assert "forge has no adapters for an engine of the variant lookahead" in refused(shop, speculating)
    engine_world.origin.files["config.json"] = json.dumps({"architectures": ["T5ForConditionalGeneration"]}).encode()
    told = refused(shop, write(tmp_path / "r", LORA, 'family = "t5"'))
    assert "family t5 names no modules that an adapter may change" in told


def test_an_image_without_adapters_is_refused_once_read(shop: Forge, engine_world: World, tmp_path: Path) -> None:
    engine_world.containers.adapters = False
    with pytest.raises(RecipeError, match="has no input lora_task_id: its engines take no adapters"):
        shop.build([write(tmp_path / "r")], repository=tmp_path / "models")


@pytest.mark.parametrize("version", originals.versions("0.15.0"))
def test_nvidias_own_models_have_all_that_is_set_and_sent(shop: Forge, tmp_path: Path, version: str) -> None:
    (entry,) = shop.plan([write(tmp_path / "r")]).entries
    assert isinstance(entry.step.action, Assemble)
    place = originals.skeletons(version)
    assert place
    texts = {role: (place / role / "config.pbtxt").read_text() for role in ("tensorrt_llm", "tensorrt_llm_bls", "ensemble")}
    wanted = {key for key in entry.step.action.settings[Role.TENSORRT_LLM] if key.startswith("lora")}
    assert len(wanted) == 5
    known = set(config.placeholders(texts["tensorrt_llm"]))
    assert wanted - known == (set() if tuple(map(int, version.split("."))) >= (0, 19, 0) else {engine_adapters.PREFETCH})
    for text in texts.values():
        found = dict(re.findall(r'name: "(lora_\w+)"\s+data_type: (TYPE_\w+)', text))
        assert found == {"lora_task_id": "TYPE_UINT64", "lora_weights": "TYPE_FP16", "lora_config": "TYPE_INT32"}


# -- the arrays


def saved(folder: Path, tensors: Mapping[str, Array], **config: object) -> Path:
    """An adapter as PEFT saves it; a uint16 array is written as BF16."""
    names = {"float32": "F32", "float16": "F16", "float64": "F64", "uint16": "BF16"}
    header: dict[str, object] = {}
    body = b""
    for name, values in tensors.items():
        header[name] = {
            "dtype": names[values.dtype.name],
            "shape": values.shape,
            "data_offsets": [len(body), len(body) + values.nbytes],
        }
        body += values.tobytes()
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, **config}))
    return folder


MODULES = {leaf: lora.MODULES[name] for leaf, name in lora.LORA_MODULES.items()}


def pair(layer: int, module: str, a: list[list[float]], b: list[list[float]], dtype: str = "float32") -> dict[str, Array]:
    stem = f"base_model.model.model.layers.{layer}.{module}"
    return {f"{stem}.lora_A.weight": np.array(a, dtype), f"{stem}.lora_B.weight": np.array(b, dtype)}


def test_rows_are_a_then_scaled_b_by_layer_and_module(tmp_path: Path) -> None:
    made = {
        **pair(1, "self_attn.q_proj", [[1, 2, 3], [4, 5, 6]], [[1, 0], [0, 1]]),
        **pair(0, "self_attn.v_proj", [[1, 1, 1], [2, 2, 2]], [[3, 4]]),
        **pair(0, "self_attn.q_proj", [[7, 8, 9], [1, 2, 3]], [[1, 2], [3, 4]]),
    }
    adapter_arrays.write(saved(tmp_path / "a", made), MODULES, tmp_path)
    weights, table = (np.load(tmp_path / name) for name in ARRAYS)
    assert (weights.dtype, table.dtype) == (np.float16, np.int32)
    assert table.tolist() == [[[1, 0, 2], [3, 0, 2], [1, 1, 2]]]
    assert weights.tolist() == [
        [
            [7, 8, 9, 1, 2, 3, 2, 4, 6, 8],
            [1, 1, 1, 2, 2, 2, 6, 8, 0, 0],
            [1, 2, 3, 4, 5, 6, 2, 0, 0, 2],
        ]
    ]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 8}}, 4.0),
        ({"alpha_pattern": {"v_proj": 8}}, 2.0),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 1}}, 0.5),
        ({"lora_alpha": None}, 4.0),
    ],
)
def test_the_scale_is_pefts(config: dict[str, object], wanted: float) -> None:
    assert adapter_arrays.scale({"r": 2, "lora_alpha": 4, **config}, "model.layers.0.self_attn.q_proj", 2) == pytest.approx(
        wanted
    )


def test_brain_floats_become_halves(tmp_path: Path) -> None:
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    made = {f"{stem}.lora_{side}.weight": np.full((1, 1), 0x3FC0, np.uint16) for side in "AB"}  # 1.5
    adapter_arrays.write(saved(tmp_path / "a", made, lora_alpha=1), MODULES, tmp_path)
    assert np.load(tmp_path / ARRAYS[0]).tolist() == [[[1.5, 1.5]]]


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (pair(0, "self_attn.q_proj", [[1e6]], [[1]]), "numbers that float16 cannot"),
        (pair(0, "self_attn.q_proj", [[float("nan")]], [[1]]), "numbers that float16 cannot"),
        (pair(0, "self_attn.qkv", [[1]], [[1]]), "over no module that TensorRT-LLM has adapters for"),
        (pair(0, "self_attn.q_proj", [[1, 2]], [[1, 2]]), "no pair of matrices of one rank"),
        (pair(99999999999, "self_attn.q_proj", [[1]], [[1]]), "over no module"),
        ({}, "changes nothing"),
    ],
)
def test_what_is_no_adapter_of_these_modules_is_said(tmp_path: Path, made: dict[str, Array], told: str) -> None:
    with pytest.raises(StepError, match=told):
        adapter_arrays.write(saved(tmp_path / "a", made), MODULES, tmp_path)


def test_matrices_of_no_rank_are_said(tmp_path: Path) -> None:
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    made = {f"{stem}.lora_A.weight": np.zeros((0, 4), np.float32), f"{stem}.lora_B.weight": np.zeros((4, 0), np.float32)}
    with pytest.raises(StepError, match="no pair of matrices"):
        adapter_arrays.write(saved(tmp_path / "a", made), MODULES, tmp_path)


@pytest.mark.parametrize("stated", [{"alpha_pattern": {"(": 4}}, {"lora_alpha": 10**400}])
def test_a_scale_that_nobody_can_reckon_is_said(tmp_path: Path, stated: dict[str, object]) -> None:
    folder = saved(tmp_path / "a", pair(0, "self_attn.q_proj", [[1]], [[1]]), **stated)
    with pytest.raises(StepError, match=r"says no scale for model\.layers\.0"):
        adapter_arrays.write(folder, MODULES, tmp_path)


def test_a_cut_file_is_said(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", pair(0, "self_attn.q_proj", [[1]], [[1]]))
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(StepError, match="cannot be read"):
        adapter_arrays.write(folder, MODULES, tmp_path)


def test_a_client_reads_the_arrays(tmp_path: Path) -> None:
    adapter_arrays.write(saved(tmp_path / "a", pair(0, "self_attn.q_proj", [[1, 2]], [[3]])), MODULES, tmp_path)
    (weights, config) = LoraTask(1, tmp_path).arrays()
    assert weights == ("lora_weights", "FP16", (1, 1, 3), np.array([1, 2, 12], "<f2").tobytes())
    assert config == ("lora_config", "INT32", (1, 1, 3), np.array([1, 0, 1], "<i4").tobytes())
    (tmp_path / ARRAYS[0]).write_bytes(b"\x93NUMPY\x02\x00")
    with pytest.raises(InferenceError, match="cannot be read"):
        array(tmp_path / ARRAYS[0])


# -- the cache


def test_a_page_holds_an_adapter_of_the_largest_rank() -> None:
    """As peftCacheManager.cpp counts: slots as wide as the narrowest module, so many for each as its width takes."""
    assert lora.page(("attn_q", "attn_k"), shape(), 4) == 2 * (4 * 2 + 4 * 1) * (8 + 4) * 2
    assert lora.page((), shape(), 4) == 0


def test_fit_counts_what_adapters_take_of_the_card(shop: Forge, tmp_path: Path) -> None:
    sizes = [shop.fit([write(tmp_path / "r", more)]).fits[0].adapters.size for more in (LORA, "")]
    assert sizes == [lora.page(("attn_q", "attn_k", "attn_v"), shape(), 4), 0]


def test_adapters_change_only_the_keys_that_stand_on_them(shop: Forge, tmp_path: Path) -> None:
    one, other = ({step.name: step.key for step in shop.plan([write(tmp_path / "r", more)]).steps} for more in (LORA, ""))
    assert one["tiny: checkpoint"] == other["tiny: checkpoint"]
    assert one["tiny: engine"] != other["tiny: engine"]
