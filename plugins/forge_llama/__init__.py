"""Llama and what is built like it: Mistral and Mixtral go through the same conversion script."""

from collections.abc import Mapping

from forge import (
    Checkpoint,
    Command,
    Problem,
    Recipe,
    Requirements,
    Tokenizer,
    Toolchain,
    hookimpl,
    trtllm,
)

FORGE_API = 6
SCRIPTS = "llama"
EXPERTS = ("MixtralForCausalLM",)
QUANTIZED_BEFORE = ("gptq", "awq")
"""Methods whose checkpoints the conversion script reads as they are."""


@hookimpl
def forge_architectures() -> tuple[str, ...]:
    return ("LlamaForCausalLM", "MistralForCausalLM", *EXPERTS)


@hookimpl
def forge_check(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    return (
        *trtllm.check(recipe, checkpoint),
        *trtllm.check_experts(recipe, checkpoint, EXPERTS),
        *trtllm.check_quantized(recipe, checkpoint, QUANTIZED_BEFORE),
    )


@hookimpl
def forge_requirements() -> Requirements:
    """Older checkpoints bring only tokenizer.model, which AutoTokenizer reads through sentencepiece."""
    return Requirements(pip=("sentencepiece",))


@hookimpl
def forge_convert_commands(recipe: Recipe, toolchain: Toolchain) -> tuple[Command, ...]:
    return trtllm.convert(recipe, toolchain, SCRIPTS)


@hookimpl
def forge_build_commands(recipe: Recipe) -> tuple[Command, ...]:
    return trtllm.build(recipe)


@hookimpl
def forge_tokenizer() -> Tokenizer:
    return Tokenizer(kind="llama")


@hookimpl
def forge_lora_modules(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Of experts TensorRT-LLM's runtime takes no adapters yet (loraModule.cpp)."""
    experts = set(EXPERTS).intersection(checkpoint.architectures)
    return trtllm.LORA_ATTENTION if experts else trtllm.LORA_MODULES
