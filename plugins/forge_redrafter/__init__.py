"""ReDrafter: a small recurrent network guesses by beam search. One engine holds model and drafter."""

from forge import Checkpoint, Command, ConfigOverrides, Problem, Recipe, Role, Scalar, Toolchain, hookimpl, trtllm

FORGE_API = 2
BEAMS, LENGTH = 5, 5
"""What the conversion script takes when nothing is said."""
IN_TWO_STEPS = "1.0"
"""Since then the script takes a base model that is converted already, and so any form of it; before, Llamas as they come."""
BASE = f"{trtllm.OUT}/base"


@hookimpl
def forge_check(recipe: Recipe, checkpoint: Checkpoint, draft: Checkpoint, toolchain: Toolchain) -> tuple[Problem, ...]:
    early = trtllm.older(toolchain, IN_TWO_STEPS)
    able = ("LlamaForCausalLM",) if early else ("LlamaForCausalLM", "Qwen2ForCausalLM")
    forms = () if early else (*trtllm.WEIGHT_ONLY, *trtllm.QUANTIZED)
    return (
        *trtllm.check_base(checkpoint, able, "redrafter"),
        *trtllm.check_vocabulary(checkpoint, draft),
        *trtllm.check_one_stage(recipe, "redrafter's script knows no pipeline parallelism"),
        *trtllm.check_quantization(recipe, forms, f"redrafter's script of TensorRT-LLM {toolchain.trtllm}"),
    )


@hookimpl
def forge_convert_commands(recipe: Recipe, toolchain: Toolchain, base: tuple[Command, ...]) -> tuple[Command, ...]:
    """From 1.0 on the family converts the base model first; convert.args are that conversion's then."""
    if trtllm.older(toolchain, IN_TWO_STEPS):
        return (_attach(recipe, toolchain, ("--model_dir", trtllm.MODEL), recipe.convert.args),)
    return (
        *trtllm.moved(base, {trtllm.OUT: BASE}),
        _attach(recipe, toolchain, ("--base_model_checkpoint_dir", BASE), {}),
        Command(("rm", "-r", BASE)),
    )


def _attach(recipe: Recipe, toolchain: Toolchain, model: tuple[str, str], args: dict[str, Scalar]) -> Command:
    table = recipe.speculation
    values: dict[str, Scalar] = {
        "redrafter_num_beams": table.num_beams or BEAMS,
        "redrafter_draft_len_per_beam": table.draft_len_per_beam or LENGTH,
    }
    argv = (
        *("python3", trtllm.tool(toolchain, "redrafter/convert_checkpoint.py")),
        *model,
        *("--drafter_model_dir", trtllm.DRAFT),
        *("--output_dir", trtllm.OUT),
        *("--dtype", recipe.convert.dtype),
        *("--tp_size", str(recipe.convert.tp)),
        *("--workers", str(recipe.convert.tp)),
        *trtllm.flags({**values, **args}),
    )
    return Command(argv)


@hookimpl
def forge_build_commands(base: tuple[Command, ...]) -> tuple[Command, ...]:
    return trtllm.extended(base, {"speculative_decoding_mode": "explicit_draft_tokens"})


@hookimpl
def forge_config_overrides() -> ConfigOverrides:
    return ConfigOverrides({Role.TENSORRT_LLM: {"decoding_mode": "redrafter"}})
