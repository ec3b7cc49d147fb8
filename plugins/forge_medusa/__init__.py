"""Medusa: further heads on the model guess the tokens after the next, as a tree. One engine holds all of it.

The likeliest token is what is checked, so a request's temperature has to be 0.
"""

from forge import Checkpoint, Command, ConfigOverrides, Problem, Recipe, Role, Scalar, Toolchain, hookimpl, trtllm

FORGE_API = 2
DRAFT_LEN, HEADS = 63, 4
"""What the conversion script takes when nothing is said; TensorRT-LLM's own tree of 63 guesses is 4 deep."""
MODEL_TYPES = {"LlamaForCausalLM": "llama", "MixtralForCausalLM": "mixtral", "Qwen2ForCausalLM": "qwen2"}
"""Architectures that the script reads -> its word for them."""


@hookimpl
def forge_check(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    return (
        *trtllm.check_base(checkpoint, tuple(MODEL_TYPES), "medusa"),
        *trtllm.check_quantization(recipe, (*trtllm.WEIGHT_ONLY, "fp8"), "the conversion of Medusa's heads"),
        *_tree(recipe),
    )


def _tree(recipe: Recipe) -> tuple[Problem, ...]:
    """Each level of the tree needs a head that guesses it."""
    table = recipe.speculation
    heads = table.num_medusa_heads or HEADS
    depth = max(map(len, table.choices), default=HEADS)
    problems = trtllm.check_tree(table.choices, table.max_draft_len or DRAFT_LEN)
    if depth > heads:
        tree = "choices go" if table.choices else "TensorRT-LLM's own tree goes"
        what = f"is {heads}, and {tree} {depth} tokens deep"
        problems += (Problem("speculation.num_medusa_heads", what, f"raise it to {depth}, or state a tree in choices"),)
    return problems


@hookimpl
def forge_convert_commands(recipe: Recipe, checkpoint: Checkpoint, toolchain: Toolchain) -> tuple[Command, ...]:
    """quantize.py attaches the heads itself, and has its own name for the size of the tree."""
    table = recipe.speculation
    length = table.max_draft_len or DRAFT_LEN
    values: dict[str, Scalar] = {"medusa_model_dir": trtllm.DRAFT, "num_medusa_heads": table.num_medusa_heads or HEADS}
    if recipe.convert.quantization in trtllm.QUANTIZED:
        return trtllm.quantize(recipe, toolchain, {**values, "max_draft_len": length})
    values["max_medusa_token_len"] = length
    kinds = [MODEL_TYPES[each] for each in checkpoint.architectures if each in MODEL_TYPES]
    if kinds and kinds[0] != "llama":  # the script's default, and its only kind once
        values["model_type"] = kinds[0]
    return trtllm.convert_by(recipe, trtllm.tool(toolchain, "medusa/convert_checkpoint.py"), values)


@hookimpl
def forge_build_commands(base: tuple[Command, ...]) -> tuple[Command, ...]:
    return trtllm.extended(base, {"speculative_decoding_mode": "medusa"})


@hookimpl
def forge_config_overrides(recipe: Recipe) -> ConfigOverrides:
    values: dict[str, Scalar] = {"decoding_mode": "medusa"}
    if recipe.speculation.choices:
        values["medusa_choices"] = trtllm.tree(recipe.speculation.choices)
    return ConfigOverrides({Role.TENSORRT_LLM: values})
