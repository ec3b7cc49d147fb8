"""The stand-in's scripts: from a checkpoint to an "engine" that holds it, and all that the originals refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]
from tensorrt_llm._standin.grids import alter

from forge.schema.values import CallPatch, TextPatch
from forge.trtllm.patches import apply_all
from forge.twin.arrays import Floats
from forge.twin.checkpoint import Weights
from forge.twin.loading import load
from standin import checkpoints
from standin.fixtures import Said, convert, run_script, trtllm_build
from standin.image import script

LLAMA, GEMMA = "models/core/llama", "models/core/gemma"
QUANTIZE = script("examples/quantization/quantize.py")
FIXES = (
    CallPatch("convert_checkpoint.py", "GemmaConfig.from_hugging_face", start=2, keywords=("quant_config",)),
    TextPatch("convert_checkpoint.py", find="smoothquant_val=None", put="smoothquant_val=0.5"),
)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return checkpoints.llama(tmp_path / "llama")


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    return checkpoints.gemma(tmp_path / "gemma")


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def converted(model: Path, into: Path, *argv: object) -> Path:
    said = convert(LLAMA, "--model_dir", model, "--output_dir", into, *argv)
    assert said.code == 0, said.err
    return into


def test_a_conversion_says_what_it_made_and_keeps_the_weights(llama: Path, tmp_path: Path) -> None:
    made = converted(llama, tmp_path / "made", "--dtype", "float32", "--tp_size", 2)
    about = config(made)
    assert (about["architecture"], about["dtype"], about["vocab_size"]) == ("LlamaForCausalLM", "float32", 259)
    assert about["mapping"]["world_size"] == 2
    assert sorted(file.name for file in made.iterdir()) == ["config.json", "rank0.safetensors", "rank1.safetensors"]
    before, after = load_file(llama / "model.safetensors"), load_file(made / "rank0.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_weights_are_written_in_the_type_that_is_asked_for(llama: Path, tmp_path: Path) -> None:
    before = load_file(llama / "model.safetensors")["lm_head.weight"]
    half = load_file(converted(llama, tmp_path / "auto") / "rank0.safetensors")["lm_head.weight"]
    assert np.array_equal(half, before.astype(np.float16))  # auto, and the checkpoint is float32
    brain = converted(llama, tmp_path / "brain", "--dtype", "bfloat16")
    (brain / "rank0.safetensors").rename(brain / "model.safetensors")
    kept = Weights(brain)["lm_head.weight"]
    assert (brain / "model.safetensors").stat().st_size < 0.6 * (llama / "model.safetensors").stat().st_size
    assert np.all(np.abs(kept - before) <= np.abs(before) * 2.0**-8)  # eight bits, rounded to the nearest
    assert not np.any(kept.view(np.uint32) & 0xFFFF)


@pytest.mark.parametrize(
    ("argv", "algorithm", "cache"),
    [
        (["--use_weight_only"], "W8A16", None),
        (["--use_weight_only", "--weight_only_precision", "int4"], "W4A16", None),
        (["--weight_only_precision", "int4"], None, None),
        (["--fp8_kv_cache"], None, "FP8"),
    ],
)
def test_quantization_by_flags_stands_in_the_config(
    llama: Path, tmp_path: Path, argv: list[str], algorithm: str | None, cache: str | None
) -> None:
    stated = config(converted(llama, tmp_path / "made", *argv))["quantization"]
    assert (stated["quant_algo"], stated["kv_cache_quant_algo"]) == (algorithm, cache)


@pytest.mark.parametrize(
    ("script_flags", "levels", "worst"),
    [
        (["--use_weight_only"], 255, 0.006),
        (["--use_weight_only", "--weight_only_precision", "int4"], 15, 0.09),
        (["--use_fp8_rowwise"], 253, 0.05),
        (["--smoothquant", "0.5"], 255, 0.006),
    ],
)
def test_only_the_matrices_of_layers_are_rounded_by_quantization(
    llama: Path, tmp_path: Path, script_flags: list[str], levels: int, worst: float
) -> None:
    data = tmp_path / "texts"
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "one"}\n')
    made = converted(llama, tmp_path / "made", "--dtype", "float32", "--calib_dataset", data, *script_flags)
    before, after = load_file(llama / "model.safetensors"), load_file(made / "rank0.safetensors")
    for name, weights in before.items():
        if name.endswith("_proj.weight"):
            largest = np.abs(weights).max()
            assert 0 < np.abs(after[name] - weights).max() <= worst * largest
            assert all(len(np.unique(row)) <= levels for row in after[name])
        else:
            assert np.array_equal(after[name], weights), name


def test_fewer_bits_are_further_from_what_the_checkpoint_says(llama: Path, tmp_path: Path) -> None:
    """Of the same prompt's next token; and answers can differ."""
    logits: list[Floats] = []
    for flags in ([], ["--use_weight_only"], ["--use_weight_only", "--weight_only_precision", "int4"]):
        made = converted(llama, tmp_path / f"made{len(flags)}", "--dtype", "float32", *flags)
        (made / "rank0.safetensors").rename(made / "model.safetensors")
        shutil.copyfile(llama / "config.json", made / "config.json")
        decoder = load(made)
        logits.append(decoder.prompt(decoder.start(), np.arange(3, 40)))
    whole, eight, four = logits
    assert 0 < np.abs(eight - whole).max() < np.abs(four - whole).max() / 4
    assert not np.array_equal(four.argsort(), whole.argsort())


@pytest.mark.parametrize(("algorithm", "group"), [("NVFP4", 16), ("W4A16_AWQ", 8), ("FP8", 128)])
def test_a_grids_numbers_stay_on_it(algorithm: str, group: int) -> None:
    weights = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    rounded = alter(algorithm, group)(name, weights)
    assert np.abs(rounded - weights).max() > 0
    np.testing.assert_allclose(alter(algorithm, group)(name, rounded), rounded, rtol=1e-5, atol=1e-7)
    if algorithm == "NVFP4":
        parts = np.abs(rounded.reshape(8, 2, 16))
        told = parts / (parts.max(axis=-1, keepdims=True) / 6)
        assert {round(float(each), 4) for each in told.reshape(-1)} <= {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0}


def test_calibration_reads_a_folder_and_no_network(llama: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts"
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    argv = ("--model_dir", llama, "--output_dir", tmp_path / "made", "--qformat", "fp8", "--kv_cache_dtype", "fp8")
    assert "ConnectionError" in run_script(QUANTIZE, *argv).err
    said = run_script(QUANTIZE, *argv, "--calib_dataset", data, "--calib_size", 1)
    assert "Calibrated on 1 texts" in said.out
    stated = config(tmp_path / "made")["quantization"]
    assert (stated["quant_algo"], stated["kv_cache_quant_algo"]) == ("FP8", "FP8")


def test_gemma_needs_the_fixes_that_forge_has_for_it(gemma: Path, tmp_path: Path) -> None:
    argv = ("--ckpt-type", "hf", "--model-dir", gemma, "--output-model-dir", tmp_path / "made", "--world-size", 2)
    original = script(f"examples/{GEMMA}/convert_checkpoint.py")
    fixed = tmp_path / "convert_checkpoint.py"

    def run(*fixes: CallPatch | TextPatch) -> Said:
        fixed.write_text(apply_all(fixes, original.read_text())[0])
        return run_script(fixed, *argv)

    assert "ValueError: 1 validation error for QuantConfig" in run().err
    assert "AttributeError: 'QuantConfig' object has no attribute 'world_size'" in run(FIXES[1]).err
    said = run(*FIXES)
    assert said.code == 0, said.err
    about = config(tmp_path / "made")
    assert (about["architecture"], about["mapping"]["tp_size"]) == ("GemmaForCausalLM", 2)


def test_gemma_has_no_default_for_the_kind_of_checkpoint(gemma: Path, tmp_path: Path) -> None:
    said = convert(GEMMA, "--model-dir", gemma, "--output-model-dir", tmp_path / "made")
    assert "KeyError: None" in said.err


def test_t5_becomes_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    model = checkpoints.t5(tmp_path / "t5")
    said = convert("models/core/enc_dec", "--model_dir", model, "--output_dir", tmp_path / "made")
    assert said.code == 0, said.err
    encoder, decoder = (config(tmp_path / "made" / half) for half in ("encoder", "decoder"))
    assert (encoder["architecture"], decoder["architecture"]) == ("EncoderModel", "DecoderModel")
    assert not any("decoder" in name for name in load_file(tmp_path / "made" / "encoder" / "rank0.safetensors"))


def test_drafts_are_converted_with_their_base(llama: Path, tmp_path: Path) -> None:
    heads, draft = checkpoints.medusa_heads(tmp_path / "heads"), checkpoints.draft(tmp_path / "draft")
    base = ("--model_dir", llama)
    for family, argv, mode in (
        ("medusa", ("--medusa_model_dir", heads, "--num_medusa_heads", 4), "medusa"),
        ("eagle", ("--eagle_model_dir", draft, "--max_draft_len", 63), "eagle"),
        ("redrafter", ("--drafter_model_dir", draft), "explicit_draft_tokens"),
    ):
        made = tmp_path / family
        said = convert(family, *base, "--output_dir", made, *argv)
        assert said.code == 0, said.err
        build = ("--checkpoint_dir", made, "--output_dir", tmp_path / f"{family}-engine")
        assert f"--speculative_decoding_mode {mode}" in trtllm_build(*build).err
        said = trtllm_build(*build, "--speculative_decoding_mode", mode)
        assert said.code == 0, said.err


def test_a_family_refuses_what_the_original_refuses(llama: Path, gemma: Path, tmp_path: Path) -> None:
    out = ("--output_dir", tmp_path / "made")
    heads = checkpoints.medusa_heads(tmp_path / "heads", heads=2)
    assert "pp_size has to be 1" in convert("models/core/phi", "--model_dir", llama, *out, "--pp_size", 2).err
    assert "pp_size has to be 1" in convert("eagle", "--model_dir", llama, *out, "--pp_size", 2).err
    assert "this script converts LlamaForCausalLM" in convert(LLAMA, "--model_dir", gemma, *out).err
    assert "must be divisible by tp_size (3)" in convert(LLAMA, "--model_dir", llama, *out, "--tp_size", 3).err
    argv = ("--model_dir", llama, *out, "--medusa_model_dir", heads)
    assert "num_medusa_heads is 4" in convert("medusa", *argv).err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("harm", ["pointer", "truncated", "missing", "no config"])
def test_a_checkpoint_that_is_not_whole_is_refused(llama: Path, tmp_path: Path, harm: str) -> None:
    weights = llama / "model.safetensors"
    match harm:
        case "pointer":
            weights.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "missing":
            weights.unlink()
        case _:
            (llama / "config.json").unlink()
    expected = {"pointer": "git-lfs pointer", "truncated": "it is incomplete", "missing": "no file named model.safetensors"}
    said = convert(LLAMA, "--model_dir", llama, "--output_dir", tmp_path / "made")
    assert said.code == 1
    assert expected.get(harm, "No such file or directory") in said.err


def test_a_build_writes_each_ranks_engine_and_limits(llama: Path, tmp_path: Path) -> None:
    made = converted(llama, tmp_path / "made", "--tp_size", 2, "--pp_size", 2)
    limits = ("--max_batch_size", 4, "--max_input_len", 100, "--max_seq_len", 200, "--max_num_tokens", 400)
    said = trtllm_build("--checkpoint_dir", made, "--output_dir", tmp_path / "engine", *limits, "--gemm_plugin", "auto")
    assert said.code == 0, said.err
    engine = tmp_path / "engine"
    assert sorted(file.name for file in engine.iterdir()) == ["config.json", *(f"rank{rank}.engine" for rank in range(4))]
    about = config(engine)
    build = about["build_config"]
    assert [build[name] for name in ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")] == [4, 100, 200, 400]
    plugins = build["plugin_config"]
    assert (plugins["use_paged_context_fmha"], plugins["gemm_plugin"]) == (True, "float16")
    assert (about["version"], about["pretrained_config"]) == ("0.21.0", config(made))


def test_a_build_without_limits_has_those_of_a_large_machine(tmp_path: Path) -> None:
    model = checkpoints.llama(tmp_path / "llama", checkpoints.Shape(positions=16384))
    made = converted(model, tmp_path / "made")
    assert trtllm_build("--checkpoint_dir", made, "--output_dir", tmp_path / "engine").code == 0
    build = config(tmp_path / "engine")["build_config"]
    assert [build[name] for name in ("max_batch_size", "max_input_len", "max_num_tokens")] == [2048, 1024, 8192]
    assert build["max_seq_len"] == 16384


def test_a_build_refuses_what_cannot_be_built(llama: Path, tmp_path: Path) -> None:
    made = converted(llama, tmp_path / "made", "--tp_size", 2)
    build = ("--checkpoint_dir", made, "--output_dir", tmp_path / "engine")
    mode = "--speculative_decoding_mode"
    for argv, complaint in (
        ((mode, "medusa"), "medusa needs a checkpoint with its heads, and this is a LlamaForCausalLM"),
        ((mode, "lookahead_decoding"), "max_draft_len must be larger than 0"),
        ((mode, "lookahead_decoding", "--max_draft_len", 5, "--max_beam_width", 2), "only max_beam_width 1"),
        (
            (mode, "draft_tokens_external", "--max_draft_len", 5, "--use_paged_context_fmha", "disable"),
            "use_paged_context_fmha must be enabled",
        ),
        (("--max_batch_size", 0), "max_batch_size has to be positive"),
    ):
        said = trtllm_build(*build, *argv)
        assert said.code == 1
        assert complaint in said.err
    (made / "rank1.safetensors").unlink()
    assert "checkpoint of rank 1 is missing" in trtllm_build(*build).err
    assert "it is no TensorRT-LLM checkpoint" in trtllm_build("--checkpoint_dir", llama, "--output_dir", tmp_path / "e").err
    assert not (tmp_path / "engine").exists()


def test_the_same_seed_makes_the_same_checkpoint(llama: Path, tmp_path: Path) -> None:
    again = checkpoints.llama(tmp_path / "again")
    assert {file.name: file.read_bytes() for file in again.iterdir()} == {
        file.name: file.read_bytes() for file in llama.iterdir()
    }
    shutil.rmtree(again)
    other = checkpoints.llama(again, seed=1)
    assert (other / "model.safetensors").read_bytes() != (llama / "model.safetensors").read_bytes()
