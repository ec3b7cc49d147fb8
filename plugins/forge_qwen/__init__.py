"""Qwen2, Qwen2.5 and Qwen3, with and without experts: one conversion script, which knows llama's flags."""

from collections.abc import Mapping

from forge import Checkpoint, Command, Problem, Recipe, Since, Tokenizer, Toolchain, hookimpl, trtllm

FORGE_API = 6
SCRIPTS = "qwen"
EXPERTS = ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
QUANTIZED_BEFORE = ("gptq", "awq")
"""Methods whose checkpoints the conversion script reads as they are."""


@hookimpl
def forge_architectures() -> tuple[str, ...]:
    return ("Qwen2ForCausalLM", "Qwen3ForCausalLM", *EXPERTS)


@hookimpl
def forge_check(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    return (
        *trtllm.check(recipe, checkpoint),
        *trtllm.check_experts(recipe, checkpoint, EXPERTS),
        *trtllm.check_quantized(recipe, checkpoint, QUANTIZED_BEFORE),
    )


@hookimpl
def forge_since() -> tuple[Since, ...]:
    """Facts of TensorRT-LLM's release notes: 0.20 brought Qwen3 to the PyTorch path, 1.0 both kinds to engines."""
    return (Since("Qwen3ForCausalLM", engine="1.0", llmapi="0.20"), Since("Qwen3MoeForCausalLM", engine="1.0", llmapi="0.20"))


@hookimpl
def forge_convert_commands(recipe: Recipe, toolchain: Toolchain) -> tuple[Command, ...]:
    return trtllm.convert(recipe, toolchain, SCRIPTS)


@hookimpl
def forge_build_commands(recipe: Recipe) -> tuple[Command, ...]:
    return trtllm.build(recipe)


@hookimpl
def forge_tokenizer() -> Tokenizer:
    return Tokenizer(kind="auto")


@hookimpl
def forge_lora_modules(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Of experts TensorRT-LLM's runtime takes no adapters yet (loraModule.cpp)."""
    experts = set(EXPERTS).intersection(checkpoint.architectures)
    return trtllm.LORA_ATTENTION if experts else trtllm.LORA_MODULES
