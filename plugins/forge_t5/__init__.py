"""T5, Flan-T5 and mT5: an encoder and a decoder, each an engine of its own.

``build.max_input_len`` is what the encoder reads; the decoder begins with one token and writes up to ``build.max_seq_len``.
"""

from forge import (
    Checkpoint,
    Command,
    ConfigOverrides,
    Engine,
    Problem,
    Recipe,
    Requirements,
    Role,
    Scalar,
    Tokenizer,
    Toolchain,
    hookimpl,
    trtllm,
)

FORGE_API = 2
SCRIPTS = "enc_dec"
ENCODER, DECODER = "encoder", "decoder"


@hookimpl
def forge_architectures() -> tuple[str, ...]:
    return ("T5ForConditionalGeneration", "MT5ForConditionalGeneration")


@hookimpl
def forge_check(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    return (
        *_dtype(recipe, checkpoint),
        *trtllm.check_one_stage(recipe, "Triton runs encoder-decoder engines without pipeline parallelism only"),
        *_heads(recipe, checkpoint),
        *trtllm.check_quantization(recipe, (*trtllm.WEIGHT_ONLY, "fp8"), "the conversion of encoder-decoder models"),
        *trtllm.check_quantized(recipe, checkpoint),
        *_reuse(recipe),
    )


def _dtype(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    """Facts of NVIDIA's enc_dec README: no auto; float16 overflows in the gated ones; fp8 calibrates from float32."""
    dtype = recipe.convert.dtype
    if recipe.convert.quantization == "fp8" and dtype != "float32":
        return (Problem("convert.dtype", f"is {dtype!r}, and T5 is calibrated for fp8 from float32", "say float32"),)
    if dtype == "auto":
        return (Problem("convert.dtype", "is 'auto', which T5's script does not know", "say bfloat16, float16 or float32"),)
    if dtype == "float16" and str(checkpoint.config.get("feed_forward_proj", "")).startswith("gated"):
        what = "is 'float16', in which T5 v1.1, Flan-T5 and mT5 overflow"
        return (Problem("convert.dtype", what, "say bfloat16 or float32"),)
    return ()


def _heads(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    """T5 counts its heads under another name, and splits the table of relative positions by them too."""
    return trtllm.check(recipe, Checkpoint({"num_attention_heads": checkpoint.config.get("num_heads")}))


def _reuse(recipe: Recipe) -> tuple[Problem, ...]:
    if not recipe.serve.enable_kv_cache_reuse:
        return ()
    what = "is on, and what a decoder keeps of an encoder's text cannot serve another request"
    return (Problem("serve.enable_kv_cache_reuse", what, "take it away"),)


@hookimpl
def forge_requirements() -> Requirements:
    """Many checkpoints bring spiece.model alone, which AutoTokenizer reads through sentencepiece."""
    return Requirements(pip=("sentencepiece",))


@hookimpl
def forge_convert_commands(recipe: Recipe, toolchain: Toolchain) -> tuple[Command, ...]:
    """One command leaves both: encoder/ and decoder/."""
    if recipe.convert.quantization in trtllm.QUANTIZED:
        return trtllm.quantize(recipe, toolchain)
    return trtllm.convert_by(recipe, trtllm.script(toolchain, SCRIPTS), {"model_type": "t5"})


@hookimpl
def forge_build_commands(recipe: Recipe) -> tuple[Command, ...]:
    """Fused attention knows no relative positions, so T5 goes without it, in both halves."""
    limits = recipe.build
    shared: dict[str, Scalar] = {"max_batch_size": limits.max_batch_size, "max_beam_width": limits.max_beam_width}
    if limits.max_num_tokens is not None:
        shared["max_num_tokens"] = limits.max_num_tokens
    encoder: dict[str, Scalar] = {**shared, "max_input_len": limits.max_input_len, "kv_cache_type": "disabled"}
    decoder: dict[str, Scalar] = {
        **shared,
        "max_input_len": 1,
        "max_encoder_input_len": limits.max_input_len,
        "max_seq_len": limits.max_seq_len,
    }
    preset: dict[str, Scalar] = {"context_fmha": False, "use_paged_context_fmha": False, "moe_plugin": "disable"}
    return (
        trtllm.build_engine(recipe, encoder, preset, ENCODER),
        trtllm.build_engine(recipe, decoder, preset, DECODER),
    )


@hookimpl
def forge_engines() -> tuple[Engine, ...]:
    return (Engine(DECODER), Engine(ENCODER, parameter="encoder_engine_dir"))


@hookimpl
def forge_tokenizer() -> Tokenizer:
    return Tokenizer(kind="t5", files=(*Tokenizer().files, "spiece.model"))


@hookimpl
def forge_config_overrides() -> ConfigOverrides:
    """Half of the KV cache holds what the decoder keeps of the encoder's text."""
    return ConfigOverrides({Role.TENSORRT_LLM: {"cross_kv_cache_fraction": 0.5, "enable_kv_cache_reuse": False}})
