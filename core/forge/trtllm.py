"""TensorRT-LLM's convert and build commands, as families share them. Pure: a recipe in, argv out.

Flags were read from the scripts' sources of 0.21; the script in the image has the last word, through its ``--help``.
"""

from collections.abc import Iterable, Mapping

from forge.errors import Problem
from forge.model import Checkpoint, Command, Recipe, Scalar, Toolchain

MODEL = "/forge/model"
DRAFT = "/forge/draft"
CHECKPOINT = "/forge/checkpoint"
OUT = "/forge/out"
"""Where a command finds its inputs and leaves its result; constants, so that one command has one key everywhere."""

SWITCHES = frozenset(
    {
        "bert_context_fmha_fp32_acc",
        "context_fmha",
        "dora_plugin",
        "fuse_fp4_quant",
        "multiple_profiles",
        "norm_quant_fusion",
        "paged_state",
        "pp_reduce_scatter",
        "reduce_fusion",
        "remove_input_padding",
        "streamingllm",
        "use_fp8_context_fmha",
        "use_fused_mlp",
        "use_paged_context_fmha",
        "user_buffer",
    }
)
"""Flags of trtllm-build that take the word enable or disable, where a recipe would rather say true or false."""

WEIGHT_ONLY = {"int8_weight_only": "int8", "int4_weight_only": "int4"}
"""Quantizations that the conversion script does by itself -> its word for them."""

QUANTIZED = {
    "fp8": ("fp8", ""),
    "int4_awq": ("int4_awq", ""),
    "w4a8_awq": ("w4a8_awq", ""),
    "int8_sq": ("int8_sq", ""),
    "fp8_kv": ("full_prec", "fp8"),
    "int8_kv": ("full_prec", "int8"),
}
"""Quantizations that need calibration by quantize.py -> its --qformat and --kv_cache_dtype."""


def flags(values: Mapping[str, Scalar], switches: Iterable[str] = ()) -> tuple[str, ...]:
    """A table of flags as argv, sorted by name.

    true is a bare flag and false none at all, except for ``switches``: those say enable or disable. A value that begins
    with ``-`` is joined by ``=``, so that no value is read as another flag.
    """
    argv: list[str] = []
    words = frozenset(switches)
    for name, value in sorted(values.items()):
        said: Scalar = value
        if isinstance(value, bool) and name.replace("-", "_") in words:
            said = "enable" if value else "disable"
        if isinstance(said, bool):
            argv += [f"--{name}"] if said else []
        elif str(said).startswith("-"):
            argv.append(f"--{name}={said}")
        else:
            argv += [f"--{name}", str(said)]
    return tuple(argv)


def script(toolchain: Toolchain, folder: str, name: str = "convert_checkpoint.py") -> str:
    """A family's script in the image."""
    return f"{toolchain.examples}/{folder}/{name}"


def tool(toolchain: Toolchain, path: str) -> str:
    """A script that stands beside the families, such as ``quantization/quantize.py``."""
    return f"{toolchain.examples.removesuffix('/models/core')}/{path}"


def convert(recipe: Recipe, toolchain: Toolchain, folder: str) -> tuple[Command, ...]:
    """Conversion by a script that knows llama's flags, or by quantize.py where the recipe's quantization needs it."""
    table = recipe.convert
    if table.quantization in QUANTIZED:
        return quantize(recipe, toolchain)
    narrow: tuple[str, ...] = ()
    if table.quantization in WEIGHT_ONLY:
        narrow = ("--use_weight_only", "--weight_only_precision", WEIGHT_ONLY[table.quantization])
    argv = (
        *("python3", script(toolchain, folder)),
        *("--model_dir", MODEL),
        *("--output_dir", OUT),
        *("--dtype", table.dtype),
        *("--tp_size", str(table.tp)),
        *("--pp_size", str(table.pp)),
        *("--workers", str(table.tp * table.pp)),
        *narrow,
        *flags(table.args),
    )
    return (Command(argv),)


def quantize(recipe: Recipe, toolchain: Toolchain) -> tuple[Command, ...]:
    """Conversion and calibration in one, by the image's quantize.py; ``convert.args`` are its flags then."""
    table = recipe.convert
    form, cache = QUANTIZED[table.quantization]
    argv = (
        *("python3", tool(toolchain, "quantization/quantize.py")),
        *("--model_dir", MODEL),
        *("--output_dir", OUT),
        *("--dtype", table.dtype),
        *("--qformat", form),
        *(("--kv_cache_dtype", cache) if cache else ()),
        *("--tp_size", str(table.tp)),
        *("--pp_size", str(table.pp)),
        *flags(table.args),
    )
    return (Command(argv),)


def build(recipe: Recipe) -> tuple[Command, ...]:
    """trtllm-build with the recipe's limits; it takes parallelism from the checkpoint, one worker for each rank.

    Every limit is said aloud: trtllm-build's own defaults (batch 2048, input 1024) are for other machines.
    """
    limits = recipe.build
    preset: dict[str, Scalar] = {"gemm_plugin": "auto"}
    if recipe.serve.enable_kv_cache_reuse:
        preset["use_paged_context_fmha"] = True
    stated = {name.replace("-", "_") for name in limits.args}
    preset = {name: value for name, value in preset.items() if name not in stated}
    argv = (
        "trtllm-build",
        *("--checkpoint_dir", CHECKPOINT),
        *("--output_dir", OUT),
        *("--max_batch_size", str(limits.max_batch_size)),
        *("--max_input_len", str(limits.max_input_len)),
        *("--max_seq_len", str(limits.max_seq_len)),
        *("--max_beam_width", str(limits.max_beam_width)),
        *(("--max_num_tokens", str(limits.max_num_tokens)) if limits.max_num_tokens is not None else ()),
        *("--workers", str(recipe.convert.tp * recipe.convert.pp)),
        *flags({**preset, **limits.args}, SWITCHES),
    )
    return (Command(argv),)


def check(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    """What the checkpoint's shape makes impossible: layers and heads that do not divide among the GPUs."""
    problems: list[Problem] = []
    for key, ways, counted in (
        ("tp", recipe.convert.tp, "num_attention_heads"),
        ("pp", recipe.convert.pp, "num_hidden_layers"),
    ):
        count = checkpoint.config.get(counted)
        if isinstance(count, int) and count % ways:
            things = counted.removeprefix("num_").replace("_", " ")
            what = f"is {ways}, and the model's {count} {things} do not divide by it"
            fitting = ", ".join(str(each) for each in (1, 2, 4, 8) if count % each == 0)
            problems.append(Problem(f"convert.{key}", what, f"these do: {fitting}"))
    return tuple(problems)
