"""EAGLE over a Llama: a small network guesses a tree of tokens from the model's own features. One engine holds both."""

from forge import Checkpoint, Command, ConfigOverrides, Problem, Recipe, Role, Scalar, Toolchain, hookimpl, trtllm

FORGE_API = 2
DRAFT_LEN, LAYERS, LEAVES = 63, 4, 10
"""What the conversion script takes when nothing is said: tokens in the tree, its depth, and what may grow on each level."""


@hookimpl
def forge_check(recipe: Recipe, checkpoint: Checkpoint, draft: Checkpoint) -> tuple[Problem, ...]:
    """On the PyTorch path nothing is converted, and more architectures can be guessed for than eagle's script reads."""
    if not trtllm.converts(recipe):
        return trtllm.check_vocabulary(checkpoint, draft)
    return (
        *trtllm.check_base(checkpoint, ("LlamaForCausalLM",), "eagle"),
        *trtllm.check_vocabulary(checkpoint, draft),
        *trtllm.check_one_stage(recipe, "eagle's script refuses pipeline parallelism"),
        *trtllm.check_quantization(recipe, tuple(trtllm.WEIGHT_ONLY), "eagle's script"),
        *_tree(recipe),
    )


def _tree(recipe: Recipe) -> tuple[Problem, ...]:
    """A tree of the recipe's own has to be as deep as the engine's layers, and no larger than its mask."""
    table = recipe.speculation
    problems = trtllm.check_tree(table.choices, table.max_draft_len or DRAFT_LEN)
    depth, layers = max(map(len, table.choices), default=0), table.num_eagle_layers or LAYERS
    if table.choices and depth != layers:
        what = f"go {depth} tokens deep, and num_eagle_layers is {layers}: eagle wants them alike"
        problems += (Problem("speculation.choices", what, f"set num_eagle_layers to {depth}"),)
    return problems


@hookimpl
def forge_convert_commands(recipe: Recipe, toolchain: Toolchain) -> tuple[Command, ...]:
    table = recipe.speculation
    values: dict[str, Scalar] = {
        "eagle_model_dir": trtllm.DRAFT,
        "max_draft_len": table.max_draft_len or DRAFT_LEN,
        "num_eagle_layers": table.num_eagle_layers or LAYERS,
        "max_non_leaves_per_layer": table.max_non_leaves_per_layer or LEAVES,
    }
    return trtllm.convert_by(recipe, trtllm.tool(toolchain, "eagle/convert_checkpoint.py"), values)


@hookimpl
def forge_build_commands(base: tuple[Command, ...]) -> tuple[Command, ...]:
    return trtllm.extended(base, {"speculative_decoding_mode": "eagle", "use_paged_context_fmha": True})


@hookimpl
def forge_config_overrides(recipe: Recipe) -> ConfigOverrides:
    values: dict[str, Scalar] = {"decoding_mode": "eagle"}
    if recipe.speculation.choices:
        values["eagle_choices"] = trtllm.tree(recipe.speculation.choices)
    return ConfigOverrides({Role.TENSORRT_LLM: values})
