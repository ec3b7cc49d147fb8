"""The Llama family: exact command lines."""

import msgspec
import pytest

import forge_llama
from forge import Checkpoint
from forge.schema.values import Calibration, ConvertTable, Recipe, Source
from forge.testing import PluginConformance
from forge.trtllm.image_table import toolchain

PLAIN = Recipe(name="m", source=Source(hub="owner/model"))
NEW = "python3 /app/examples/models/core/llama/convert_checkpoint.py --model_dir /forge/model --output_dir /forge/out "
QUANTIZE = "python3 /app/examples/quantization/quantize.py --model_dir /forge/model --output_dir /forge/out "


class TestLlama(PluginConformance):
    plugin = forge_llama


def _convert(table: ConvertTable, image: str = "25.08") -> str:
    recipe = msgspec.structs.replace(PLAIN, convert=table)
    (command,) = forge_llama.forge_convert_commands(recipe, toolchain(image))
    return " ".join(command.argv)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (ConvertTable(dtype="bfloat16"), NEW + "--dtype bfloat16 --tp_size 1 --pp_size 1 --workers 1"),
        (ConvertTable(tp=4, pp=2), NEW + "--dtype auto --tp_size 4 --pp_size 2 --workers 8"),
        (
            ConvertTable(quantization="int8_weight_only", args={"load_model_on_cpu": True}),
            NEW + "--dtype auto --tp_size 1 --pp_size 1 --workers 1 "
            "--use_weight_only --weight_only_precision int8 --load_model_on_cpu",
        ),
        (
            ConvertTable(quantization="int4_weight_only"),
            NEW + "--dtype auto --tp_size 1 --pp_size 1 --workers 1 --use_weight_only --weight_only_precision int4",
        ),
        (
            ConvertTable(dtype="float16", tp=2, quantization="fp8", args={"kv_cache_dtype": "fp8"}),
            QUANTIZE + "--dtype float16 --qformat fp8 --tp_size 2 --pp_size 1 --kv_cache_dtype fp8",
        ),
        (ConvertTable(quantization="int4_awq"), QUANTIZE + "--dtype auto --qformat int4_awq --tp_size 1 --pp_size 1"),
        (ConvertTable(quantization="w4a8_awq"), QUANTIZE + "--dtype auto --qformat w4a8_awq --tp_size 1 --pp_size 1"),
        (ConvertTable(quantization="int8_sq"), QUANTIZE + "--dtype auto --qformat int8_sq --tp_size 1 --pp_size 1"),
        (
            ConvertTable(quantization="int8_kv"),
            QUANTIZE + "--dtype auto --qformat full_prec --kv_cache_dtype int8 --tp_size 1 --pp_size 1",
        ),
        (
            ConvertTable(quantization="fp8_kv"),
            QUANTIZE + "--dtype auto --qformat full_prec --kv_cache_dtype fp8 --tp_size 1 --pp_size 1",
        ),
    ],
)
def test_conversion_is_one_exact_command(table: ConvertTable, line: str) -> None:
    assert _convert(table) == line


def test_calibration_texts_are_mounted_and_no_network_is_asked() -> None:
    table = ConvertTable(quantization="int8_sq", calibration=Calibration(hub="a/texts", size=64))
    (command,) = forge_llama.forge_convert_commands(msgspec.structs.replace(PLAIN, convert=table), toolchain("25.08"))
    assert " ".join(command.argv) == (
        QUANTIZE + "--dtype auto --qformat int8_sq --tp_size 1 --pp_size 1 --calib_dataset /forge/calibration --calib_size 64"
    )
    assert command.env == {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}


def test_older_images_keep_their_scripts_elsewhere() -> None:
    assert "/app/examples/llama/convert_checkpoint.py" in _convert(ConvertTable(), "25.03")
    assert "/app/examples/quantization/quantize.py" in _convert(ConvertTable(quantization="fp8"), "25.03")


def test_experts_flags_need_a_model_with_experts() -> None:
    recipe = msgspec.structs.replace(PLAIN, convert=ConvertTable(args={"moe_tp_size": 2}))
    (problem,) = forge_llama.forge_check(recipe, Checkpoint({"architectures": ["LlamaForCausalLM"]}))
    assert problem.where == "convert.args"
    assert forge_llama.forge_check(recipe, Checkpoint({"architectures": ["MixtralForCausalLM"]})) == ()


def test_the_tokenizer_keeps_the_families_kind() -> None:
    assert forge_llama.forge_tokenizer().kind == "llama"
    assert forge_llama.forge_requirements().pip == ("sentencepiece",)
