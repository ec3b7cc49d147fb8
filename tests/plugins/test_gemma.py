"""The Gemma family: exact command lines, and its fixes on the scripts as they were seen."""

import msgspec
import pytest

import forge_gemma
from forge import Checkpoint
from forge.schema.values import ConvertTable, Recipe, Source
from forge.testing import PluginConformance
from forge.trtllm.image_table import toolchain
from forge.trtllm.patches import apply_all

PLAIN = Recipe(name="m", source=Source(hub="owner/model"))
SCRIPT = "/app/examples/models/core/gemma/convert_checkpoint.py"
HEAD = f"python3 {SCRIPT} --ckpt-type hf --model-dir /forge/model --output-model-dir /forge/out "


class TestGemma(PluginConformance):
    plugin = forge_gemma


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (ConvertTable(dtype="bfloat16"), HEAD + "--dtype bfloat16 --world-size 1"),
        (
            ConvertTable(tp=2, quantization="int4_weight_only", args={"load_model_on_cpu": True}),
            HEAD + "--dtype auto --world-size 2 --use-weight-only-with-precision int4 --load_model_on_cpu",
        ),
        (
            ConvertTable(quantization="fp8"),
            (
                "python3 /app/examples/quantization/quantize.py --model_dir /forge/model --output_dir /forge/out "
                "--dtype auto --qformat fp8 --tp_size 1 --pp_size 1"
            ),
        ),
    ],
)
def test_conversion_is_one_exact_command(table: ConvertTable, line: str) -> None:
    recipe = msgspec.structs.replace(PLAIN, convert=table)
    (command,) = forge_gemma.forge_convert_commands(recipe, toolchain("25.08"))
    assert " ".join(command.argv) == line


def test_pipeline_parallelism_is_refused_with_the_fix() -> None:
    recipe = msgspec.structs.replace(PLAIN, convert=ConvertTable(pp=2))
    (problem,) = forge_gemma.forge_check(recipe, Checkpoint())
    assert (problem.where, problem.hint) == ("convert.pp", "set it to 1 and raise convert.tp")


def test_the_positional_quantization_and_the_missing_smoothing_are_fixed_once() -> None:
    broken = (
        "quant_config = QuantConfig(quant_algo=algo,\n                           smoothquant_val=args.smoothquant)\n"
        "config = GemmaConfig.from_hugging_face(args.model_dir, args.dtype, quant_config)\n"
        "plain = QuantConfig(quant_algo=None, smoothquant_val=None)\n"
    )
    patches = forge_gemma.forge_patches(toolchain("25.08"))
    assert {patch.file for patch in patches} == {SCRIPT}
    fixed, _ = apply_all(patches, broken)
    assert "from_hugging_face(args.model_dir, args.dtype, quant_config=quant_config)" in fixed
    assert "smoothquant_val=0.5 if args.smoothquant is None else args.smoothquant)" in fixed
    assert "smoothquant_val=0.5)" in fixed
    assert apply_all(patches, fixed)[0] == fixed


def test_a_script_that_stands_well_is_left_and_told_so() -> None:
    well = (
        "config = GemmaConfig.from_hugging_face(\n    args.model_dir,\n    args.dtype,\n    mapping=m,\n    quant_config=q)\n"
    )
    text, notes = apply_all(forge_gemma.forge_patches(toolchain("25.03")), well)
    assert text == well
    assert all("not needed" in note for note in notes)
    assert all(note.startswith("/app/examples/gemma/convert_checkpoint.py") for note in notes)
