"""LoRA adapters on the PyTorch path, on fakes: what LLM() is told, what a request says, and what is refused."""

import json
import math
import struct
from pathlib import Path

import pytest
import yaml

from fake_wiring import World
from fakes import LLAMA, tiny_adapter
from forge.api.forge import Forge
from forge.client.lora import LoraTask
from forge.client.tensors import inputs_of
from forge.client.types import ModelMetadata, TensorMetadata
from forge.errors import RecipeError, StepError
from forge.serve.lookup import Target, adapted
from forge.trtllm import lora
from lora_kit import SHAPE, shape, spoiled, weights
from standin import image

QUERIES = "model.layers.0.self_attn.q_proj"
RECIPE = """
name = "tiny"
[source]
hub = "acme/tiny"
[runtime]
kind = "llmapi"
image = "25.09"
[[lora]]
name = "sql"
hub = "acme/sql"
"""


@pytest.fixture
def llmapi_world(world: World) -> World:
    """A Llama, an adapter over its queries, and an image whose llmapi model takes adapters."""
    world.origin.files["config.json"] = json.dumps(LLAMA).encode()
    world.origin.files["model.safetensors"] = weights(self_attn__q_proj=(8, 8), mlp__gate_up_proj=(48, 8), mlp__experts=(8, 8))
    world.origin.adapters["acme/sql"] = tiny_adapter(4, QUERIES, (8, 8))
    world.containers.llmapi["config.pbtxt"] += image.LORA_INPUTS
    return world


@pytest.fixture
def shop(llmapi_world: World, tmp_path: Path) -> Forge:
    return llmapi_world.shop(tmp_path / "home")


def write(folder: Path, more: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.toml").write_text(RECIPE + more)
    return folder / "tiny.toml"


def test_llm_is_told_their_modules_their_rank_and_their_number(shop: Forge, llmapi_world: World, tmp_path: Path) -> None:
    llmapi_world.origin.adapters["acme/large"] = tiny_adapter(16, "model.layers.1.mlp.gate_up_proj", (48, 8))
    more = '[[lora]]\nname = "large"\nhub = "acme/large"\n'
    root = shop.build([write(tmp_path / "r", more)], repository=tmp_path / "models").repository
    assert yaml.safe_load((root / "tensorrt_llm/1/model.yaml").read_text())["lora_config"] == {
        "lora_target_modules": ["attn_q", "attn_k", "attn_v", "mlp_gate_up"],
        "max_lora_rank": 16,
        "max_loras": 2,
        "max_cpu_loras": 2,
    }
    assert json.loads((root / "_assets/tiny/loras.json").read_text()) == {"sql": 1, "large": 2}
    assert {each.name for each in (root / "_assets/tiny/loras/sql").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert shop.check(root).findings == ()


def test_fit_counts_what_adapters_take_of_the_card(shop: Forge, llmapi_world: World, tmp_path: Path) -> None:
    llmapi_world.origin.files["config.json"] = json.dumps({**LLAMA, **SHAPE, "num_hidden_layers": 2}).encode()
    (fit,) = shop.fit([write(tmp_path / "r")], gpu="RTX 4090").fits
    assert fit.adapters.size == lora.page(("attn_q", "attn_k", "attn_v"), shape(), 4)


def test_a_recipes_own_word_wins(shop: Forge, tmp_path: Path) -> None:
    more = '[build.args]\n"lora_config.max_loras" = 1\n'
    root = shop.build([write(tmp_path / "r", more)], repository=tmp_path / "models").repository
    assert yaml.safe_load((root / "tensorrt_llm/1/model.yaml").read_text())["lora_config"]["max_loras"] == 1


def test_a_request_names_the_folder_as_the_container_sees_it(shop: Forge, tmp_path: Path) -> None:
    built = shop.build([write(tmp_path / "r")], repository=tmp_path / "models")
    target = adapted(Target("localhost:1", built.models[0], built.repository), "sql")
    request = target.request("Why?")
    folder = built.repository / "_assets/tiny/loras/sql"
    assert request.lora_task == LoraTask(1, folder, place="/forge/repository/_assets/tiny/loras/sql")
    types = {"text_input": "BYTES", "sampling_param_max_tokens": "INT32", "streaming": "BOOL", "lora_id": "UINT64"}
    types |= {"lora_name": "BYTES", "lora_path": "BYTES"}
    offered = {name: TensorMetadata(name, datatype, (1,)) for name, datatype in types.items()}
    told = {each.name: each.raw for each in inputs_of(request, ModelMetadata("tensorrt_llm", offered, {}))}
    assert told["lora_id"] == (1).to_bytes(8, "little")
    assert told["lora_name"].endswith(b"sql")
    assert told["lora_path"].endswith(b"/forge/repository/_assets/tiny/loras/sql")
    assert "lora_weights" not in told


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (tiny_adapter(4, "model.layers.0.mlp.experts", (8, 8)), "adapters of LLM() may change q_proj, "),
        (tiny_adapter(4, QUERIES, (8, 8), use_dora=True), "use_dora, which forge does not lay for llmapi"),
        (tiny_adapter(4, QUERIES, (8, 8), lora_alpha=8, alpha_pattern={"q_proj": 16}), "LLM() gives every module lora_alpha"),
        (tiny_adapter(4, QUERIES, (9, 8)), "as 9 x 8, and the checkpoint's is 8 x 8"),
    ],
)
def test_what_llm_cannot_have_is_refused_before_anything_is_fetched(
    shop: Forge, llmapi_world: World, tmp_path: Path, made: dict[str, bytes], told: str
) -> None:
    llmapi_world.origin.adapters["acme/sql"] = made
    with pytest.raises(RecipeError) as caught:
        shop.plan([write(tmp_path / "r")])
    assert told in str(caught.value)
    assert llmapi_world.origin.fetches == 0


def test_a_plan_of_an_unread_image_names_its_unknowns(shop: Forge, tmp_path: Path) -> None:
    notes = shop.plan([write(tmp_path / "r")]).notes
    assert any("the build looks whether this image's does" in note for note in notes)


def test_an_image_without_the_inputs_is_refused_with_others(shop: Forge, llmapi_world: World, tmp_path: Path) -> None:
    text = llmapi_world.containers.llmapi["config.pbtxt"]
    llmapi_world.containers.llmapi["config.pbtxt"] = text.replace('input { name: "lora_path"', '# input { name: "lora_path"')
    with pytest.raises(RecipeError, match="has no inputs for an adapter") as caught:
        shop.build([write(tmp_path / "r")], repository=tmp_path / "models")
    assert 'runtime.kind = "engine" or "vllm"' in str(caught.value)
    assert llmapi_world.origin.fetches == 0


def test_adapter_matrices_with_nan_are_refused_by_the_build(shop: Forge, llmapi_world: World, tmp_path: Path) -> None:
    llmapi_world.origin.adapters["acme/sql"] = spoiled(tiny_adapter(4, QUERIES, (8, 8)), bytes(4), struct.pack("<f", math.inf))
    with pytest.raises(StepError, match=r"q_proj\.lora_A\.weight holds what is no finite number"):
        shop.build([write(tmp_path / "r")], repository=tmp_path / "models")
