"""Llama and what is built like it: Mistral and Mixtral go through the same conversion script."""

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

SCRIPTS = "llama"


@hookimpl
def forge_architectures() -> tuple[str, ...]:
    return ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")


@hookimpl
def forge_check(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    problems = trtllm.check(recipe, checkpoint)
    moe = [name for name in recipe.convert.args if name.startswith("moe_")]
    if moe and checkpoint.architectures and "MixtralForCausalLM" not in checkpoint.architectures:
        what = f"{', '.join(moe)}: this checkpoint has no experts"
        problems += (Problem("convert.args", what, "take the moe_ flags away"),)
    return problems


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
