"""Phi-1.5, Phi-2, Phi-3, Phi-3.5 and Phi-4 (text): a conversion script that keeps all layers together."""

from collections.abc import Mapping

from forge import Checkpoint, Command, Problem, Recipe, Requirements, Tokenizer, Toolchain, hookimpl, trtllm

FORGE_API = 6
SCRIPTS = "phi"
EXPERTS = ("PhiMoEForCausalLM",)
TIKTOKEN = "Phi3SmallForCausalLM"
LORA: Mapping[str, Mapping[str, str]] = {
    "PhiForCausalLM": {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v"},
    "Phi3ForCausalLM": {"qkv_proj": "attn_qkv", "o_proj": "attn_dense", "down_proj": "mlp_4h_to_h"},
    **dict.fromkeys(EXPERTS, trtllm.LORA_ATTENTION),
}
"""Those of TensorRT-LLM's models/phi and models/phi3 that have the sizes which its runtime takes them for."""


@hookimpl
def forge_architectures() -> tuple[str, ...]:
    return ("PhiForCausalLM", "Phi3ForCausalLM", TIKTOKEN, *EXPERTS)


@hookimpl
def forge_check(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    return (
        *trtllm.check(recipe, checkpoint),
        *trtllm.check_experts(recipe, checkpoint, EXPERTS),
        *trtllm.check_quantized(recipe, checkpoint),
        *trtllm.check_one_stage(recipe, "Phi's conversion script refuses pipeline parallelism"),
    )


@hookimpl
def forge_requirements(checkpoint: Checkpoint) -> Requirements:
    """Phi-3-small's tokenizer is made of tiktoken's files; the others bring tokenizer.json."""
    return Requirements(pip=("tiktoken",) if TIKTOKEN in checkpoint.architectures else ())


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
def forge_lora_modules(checkpoint: Checkpoint) -> Mapping[str, str] | None:
    return next((LORA[name] for name in checkpoint.architectures if name in LORA), None)
