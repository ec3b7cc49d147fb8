"""T5: an encoder and a decoder, each an engine of its own."""

import msgspec
import pytest

import forge_t5
from forge import Checkpoint, Engine, Role
from forge.plan.families import Family
from forge.schema.values import BuildTable, ConvertTable, Recipe, ServeTable, Source
from forge.testing import PluginConformance
from forge.trtllm.image_table import toolchain

PLAIN = Recipe(
    name="m",
    source=Source(hub="owner/model"),
    convert=ConvertTable(dtype="bfloat16", tp=2),
    build=BuildTable(max_input_len=512, max_seq_len=640, max_num_tokens=4096),
)
PLAIN_T5 = Checkpoint({"architectures": ["T5ForConditionalGeneration"], "num_heads": 8, "is_encoder_decoder": True})
GATED = Checkpoint({**PLAIN_T5.config, "feed_forward_proj": "gated-gelu"})
HEAD = "python3 /app/examples/models/core/enc_dec/convert_checkpoint.py --model_dir /forge/model --output_dir /forge/out "
SHARED = "--max_batch_size 8 --max_beam_width 1 --max_num_tokens 4096 "
TAIL = "--workers 2 --context_fmha disable --gemm_plugin auto --moe_plugin disable --use_paged_context_fmha disable"


class TestT5(PluginConformance):
    plugin = forge_t5
    recipe = PLAIN


def _with(**convert: object) -> Recipe:
    told = {**msgspec.structs.asdict(PLAIN.convert), **convert}
    return msgspec.structs.replace(PLAIN, convert=msgspec.convert(told, ConvertTable))


def test_one_conversion_leaves_both_halves() -> None:
    (command,) = forge_t5.forge_convert_commands(PLAIN, toolchain("25.08"))
    assert " ".join(command.argv) == HEAD + "--dtype bfloat16 --tp_size 2 --pp_size 1 --workers 2 --model_type t5"


def test_the_encoder_reads_the_decoder_writes_from_one_token() -> None:
    encoder, decoder = (" ".join(command.argv) for command in forge_t5.forge_build_commands(PLAIN))
    assert encoder == (
        "trtllm-build --checkpoint_dir /forge/checkpoint/encoder --output_dir /forge/out/encoder "
        f"{SHARED}--max_input_len 512 --kv_cache_type disabled {TAIL}"
    )
    assert decoder == (
        "trtllm-build --checkpoint_dir /forge/checkpoint/decoder --output_dir /forge/out/decoder "
        f"{SHARED}--max_input_len 1 --max_encoder_input_len 512 --max_seq_len 640 {TAIL}"
    )


def test_both_engines_are_told_to_one_model() -> None:
    family = Family.of(PLAIN, PLAIN_T5)
    assert family.name == "t5"
    assert family.engines() == (Engine("decoder"), Engine("encoder", Role.TENSORRT_LLM, "encoder_engine_dir"))
    settings = family.config_overrides().roles[Role.TENSORRT_LLM]
    assert settings == {"cross_kv_cache_fraction": 0.5, "enable_kv_cache_reuse": False}


def test_the_tokenizer_may_be_a_bare_sentencepiece_model() -> None:
    assert (forge_t5.forge_tokenizer().kind, "spiece.model" in forge_t5.forge_tokenizer().files) == ("t5", True)
    assert forge_t5.forge_requirements().pip == ("sentencepiece",)


@pytest.mark.parametrize(
    ("recipe", "checkpoint", "where"),
    [
        (_with(dtype="auto"), PLAIN_T5, ["convert.dtype"]),
        (_with(dtype="float16"), GATED, ["convert.dtype"]),
        (_with(dtype="float16"), PLAIN_T5, []),
        (_with(pp=2), PLAIN_T5, ["convert.pp"]),
        (_with(tp=3), PLAIN_T5, ["convert.tp"]),
        (_with(quantization="int4_awq"), PLAIN_T5, ["convert.quantization"]),
        (_with(quantization="fp8"), PLAIN_T5, ["convert.dtype"]),
        (_with(quantization="fp8", dtype="float32"), PLAIN_T5, []),
        (_with(quantization="int8_weight_only"), PLAIN_T5, []),
        (
            msgspec.structs.replace(PLAIN, serve=ServeTable(enable_kv_cache_reuse=True)),
            PLAIN_T5,
            ["serve.enable_kv_cache_reuse"],
        ),
        (PLAIN, Checkpoint(), []),
    ],
)
def test_what_cannot_work_is_told_at_its_key(recipe: Recipe, checkpoint: Checkpoint, where: list[str]) -> None:
    assert [problem.where for problem in forge_t5.forge_check(recipe, checkpoint)] == where


def test_no_variant_stands_over_it() -> None:
    for variant in ("lookahead", "draft-target", "eagle", "medusa", "redrafter"):
        family = Family.of(msgspec.structs.replace(PLAIN, variant=variant), PLAIN_T5)
        assert "variant" in [problem.where for problem in family.check(toolchain("25.08"))]
