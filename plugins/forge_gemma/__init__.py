"""Gemma, Gemma 2 and Gemma 3 (text): a conversion script with flags of its own, and two fixes for it."""

from collections.abc import Mapping

from forge import (
    CallPatch,
    Checkpoint,
    Command,
    Patch,
    Problem,
    Recipe,
    Requirements,
    Since,
    TextPatch,
    Tokenizer,
    Toolchain,
    hookimpl,
    trtllm,
)

FORGE_API = 6
SCRIPTS = "gemma"


@hookimpl
def forge_architectures() -> tuple[str, ...]:
    return ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM")


@hookimpl
def forge_check(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    staged = trtllm.check_one_stage(recipe, "Gemma's conversion script knows no pipeline parallelism")
    return (*trtllm.check(recipe, checkpoint), *trtllm.check_quantized(recipe, checkpoint), *staged)


@hookimpl
def forge_since() -> tuple[Since, ...]:
    """Facts of TensorRT-LLM's release notes: Gemma 3's text model came to engines with 0.19, to the PyTorch path with 0.20."""
    return (Since("Gemma3ForCausalLM", engine="0.19", llmapi="0.20"),)


@hookimpl
def forge_requirements() -> Requirements:
    """A checkpoint may bring tokenizer.model alone, which AutoTokenizer reads through sentencepiece."""
    return Requirements(pip=("sentencepiece",))


@hookimpl
def forge_patches(toolchain: Toolchain) -> tuple[Patch, ...]:
    """Fixes for the script's talk with the library, each doing nothing where the image's versions agree."""
    script = trtllm.script(toolchain, SCRIPTS)
    return (
        CallPatch(
            script,
            "GemmaConfig.from_hugging_face",
            start=2,
            keywords=("quant_config",),
            why="the third position became mapping, so a quantization passed there is taken for it",
        ),
        TextPatch(
            script,
            find="smoothquant_val=args.smoothquant)",
            put="smoothquant_val=0.5 if args.smoothquant is None else args.smoothquant)",
            required=False,
            why="where QuantConfig is a pydantic model it refuses None; 0.5 is its own default",
        ),
        TextPatch(
            script,
            find="smoothquant_val=None",
            put="smoothquant_val=0.5",
            required=False,
            why="where QuantConfig is a pydantic model it refuses None; 0.5 is its own default",
        ),
    )


@hookimpl
def forge_convert_commands(recipe: Recipe, toolchain: Toolchain) -> tuple[Command, ...]:
    """Gemma's script names its flags its own way, and has no default for the kind of checkpoint.

    ``--use-weight-only-with-precision`` is the one spelling that 0.14 to 1.2 know: alone up to 0.16, as an alias of
    ``--weight_only_precision`` afterwards, which then does not need ``--use_weight_only`` either.
    """
    table = recipe.convert
    if table.quantization in trtllm.QUANTIZED:
        return trtllm.quantize(recipe, toolchain)
    narrow: tuple[str, ...] = ()
    if table.quantization in trtllm.WEIGHT_ONLY:
        narrow = ("--use-weight-only-with-precision", trtllm.WEIGHT_ONLY[table.quantization])
    argv = (
        *("python3", trtllm.script(toolchain, SCRIPTS)),
        *("--ckpt-type", "hf"),
        *("--model-dir", trtllm.MODEL),
        *("--output-model-dir", trtllm.OUT),
        *("--dtype", table.dtype),
        *("--world-size", str(table.tp)),
        *narrow,
        *trtllm.flags(table.args),
    )
    return (Command(argv),)


@hookimpl
def forge_build_commands(recipe: Recipe) -> tuple[Command, ...]:
    return trtllm.build(recipe)


@hookimpl
def forge_tokenizer() -> Tokenizer:
    return Tokenizer(kind="auto")


@hookimpl
def forge_lora_modules() -> Mapping[str, str]:
    return trtllm.LORA_MODULES
