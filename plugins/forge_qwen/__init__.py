"""Qwen2, Qwen2.5 and Qwen3, with and without experts: one conversion script, which knows llama's flags."""

from forge import Checkpoint, Command, Problem, Recipe, Tokenizer, Toolchain, hookimpl, trtllm

SCRIPTS = "qwen"
EXPERTS = ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")


@hookimpl
def forge_architectures() -> tuple[str, ...]:
    return ("Qwen2ForCausalLM", "Qwen3ForCausalLM", *EXPERTS)


@hookimpl
def forge_check(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    return trtllm.check(recipe, checkpoint) + trtllm.check_experts(recipe, checkpoint, EXPERTS)


@hookimpl
def forge_convert_commands(recipe: Recipe, toolchain: Toolchain) -> tuple[Command, ...]:
    return trtllm.convert(recipe, toolchain, SCRIPTS)


@hookimpl
def forge_build_commands(recipe: Recipe) -> tuple[Command, ...]:
    return trtllm.build(recipe)


@hookimpl
def forge_tokenizer() -> Tokenizer:
    return Tokenizer(kind="auto")
