"""Qwen and Phi: families whose scripts know llama's flags."""

from types import ModuleType

import msgspec
import pytest

import forge_phi
import forge_qwen
from forge import Checkpoint
from forge.plan import families
from forge.schema.values import ConvertTable, Recipe, Source
from forge.testing import PluginConformance
from forge.trtllm.image_table import toolchain

PLAIN = Recipe(name="m", source=Source(hub="owner/model"))
TAIL = "--model_dir /forge/model --output_dir /forge/out"


class TestQwen(PluginConformance):
    plugin = forge_qwen


class TestPhi(PluginConformance):
    plugin = forge_phi


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("Qwen2ForCausalLM", "qwen"),
        ("Qwen2MoeForCausalLM", "qwen"),
        ("Qwen3ForCausalLM", "qwen"),
        ("Qwen3MoeForCausalLM", "qwen"),
        ("PhiForCausalLM", "phi"),
        ("Phi3ForCausalLM", "phi"),
        ("Phi3SmallForCausalLM", "phi"),
        ("PhiMoEForCausalLM", "phi"),
    ],
)
def test_a_family_is_found_by_its_architectures(architecture: str, name: str) -> None:
    assert families.find(Checkpoint({"architectures": [architecture]})) == name


@pytest.mark.parametrize(
    ("plugin", "table", "line"),
    [
        (
            forge_qwen,
            ConvertTable(tp=2, pp=2),
            f"qwen/convert_checkpoint.py {TAIL} --dtype auto --tp_size 2 --pp_size 2 --workers 4",
        ),
        (
            forge_qwen,
            ConvertTable(dtype="bfloat16", quantization="int4_weight_only"),
            (
                f"qwen/convert_checkpoint.py {TAIL} --dtype bfloat16 --tp_size 1 --pp_size 1 --workers 1 "
                "--use_weight_only --weight_only_precision int4"
            ),
        ),
        (
            forge_phi,
            ConvertTable(dtype="float16", quantization="int8_weight_only"),
            (
                f"phi/convert_checkpoint.py {TAIL} --dtype float16 --tp_size 1 --pp_size 1 --workers 1 "
                "--use_weight_only --weight_only_precision int8"
            ),
        ),
        (forge_phi, ConvertTable(tp=2), f"phi/convert_checkpoint.py {TAIL} --dtype auto --tp_size 2 --pp_size 1 --workers 2"),
    ],
)
def test_conversion_is_one_exact_command(plugin: ModuleType, table: ConvertTable, line: str) -> None:
    recipe = msgspec.structs.replace(PLAIN, convert=table)
    (command,) = plugin.forge_convert_commands(recipe, toolchain("25.08"))
    assert " ".join(command.argv) == f"python3 /app/examples/models/core/{line}"


def test_phi_keeps_all_layers_together() -> None:
    recipe = msgspec.structs.replace(PLAIN, convert=ConvertTable(pp=2))
    (problem,) = forge_phi.forge_check(recipe, Checkpoint())
    assert (problem.where, problem.hint) == ("convert.pp", "set it to 1 and raise convert.tp")
    assert forge_qwen.forge_check(recipe, Checkpoint()) == ()


@pytest.mark.parametrize(
    ("plugin", "dense", "sparse"),
    [
        (forge_qwen, "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
        (forge_phi, "Phi3ForCausalLM", "PhiMoEForCausalLM"),
    ],
)
def test_experts_flags_need_a_model_with_experts(plugin: ModuleType, dense: str, sparse: str) -> None:
    recipe = msgspec.structs.replace(PLAIN, convert=ConvertTable(args={"moe_ep_size": 2}))
    (problem,) = plugin.forge_check(recipe, Checkpoint({"architectures": [dense]}))
    assert problem.where == "convert.args"
    assert plugin.forge_check(recipe, Checkpoint({"architectures": [sparse]})) == ()


def test_only_phi_3_small_needs_tiktoken() -> None:
    small = Checkpoint({"architectures": ["Phi3SmallForCausalLM"]})
    assert forge_phi.forge_requirements(small).pip == ("tiktoken",)
    assert forge_phi.forge_requirements(Checkpoint({"architectures": ["Phi3ForCausalLM"]})).pip == ()
