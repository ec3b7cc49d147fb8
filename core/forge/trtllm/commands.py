"""TensorRT-LLM's convert and build commands, as families share them. Pure: a recipe in, argv out.

Flags were read from the scripts' sources of 0.21; the script in the image has the last word, through its ``--help``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from forge.errors import Problem
from forge.files import texts
from forge.schema.config_json import GPTQ, PACKED, Quantized, quantized
from forge.schema.recipe import QUANTIZED, WEIGHT_ONLY
from forge.schema.values import Checkpoint, Command, Recipe, RuntimeKind, Scalar, Toolchain

MODEL = "/forge/model"
DRAFT = "/forge/draft"
CHECKPOINT = "/forge/checkpoint"
CALIBRATION = "/forge/calibration"
OUT = "/forge/out"
"""Where a command finds its inputs and leaves its result; constants, so that one command has one key everywhere."""

SWITCHES = frozenset(texts.words("forge.trtllm", "switches.txt"))
"""Flags of trtllm-build that take the word enable or disable, where a recipe would rather say true or false."""


OFFLINE = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
"""Keeps the data set's library from asking a network that a step has not; it reads what is mounted."""

_VERSION = re.compile(r"\d+(\.\d+)*")


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


def older(toolchain: Toolchain, version: str) -> bool:
    """Whether the image's TensorRT-LLM is known to be older than ``version``; one that says nothing is taken for new."""
    stated = _VERSION.match(toolchain.trtllm)
    return stated is not None and _numbers(stated.group()) < _numbers(version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def convert(recipe: Recipe, toolchain: Toolchain, folder: str) -> tuple[Command, ...]:
    """Conversion by a script that knows llama's flags, or by quantize.py where the recipe's quantization needs it."""
    if recipe.convert.quantization in QUANTIZED:
        return quantize(recipe, toolchain)
    return convert_by(recipe, script(toolchain, folder))


def convert_by(recipe: Recipe, program: str, values: Mapping[str, Scalar] | None = None) -> tuple[Command, ...]:
    """Conversion by ``program``, a script that knows llama's flags and those in ``values``."""
    table = recipe.convert
    narrow: tuple[str, ...] = ()
    if table.quantization in WEIGHT_ONLY:
        narrow = ("--use_weight_only", "--weight_only_precision", WEIGHT_ONLY[table.quantization])
    if table.quantization in GPTQ:
        narrow = ("--use_weight_only", "--weight_only_precision", table.quantization, "--per_group")
    argv = (
        *("python3", program),
        *("--model_dir", MODEL),
        *("--output_dir", OUT),
        *("--dtype", table.dtype),
        *("--tp_size", str(table.tp)),
        *("--pp_size", str(table.pp)),
        *("--workers", str(table.tp * table.pp)),
        *narrow,
        *flags({**(values or {}), **table.args}),
    )
    return (Command(argv),)


def quantize(recipe: Recipe, toolchain: Toolchain, values: Mapping[str, Scalar] | None = None) -> tuple[Command, ...]:
    """Conversion and calibration in one, by the image's quantize.py; ``convert.args`` are its flags then.

    The texts to calibrate with are the recipe's [convert.calibration], mounted at ``CALIBRATION``.
    """
    table = recipe.convert
    form, cache = QUANTIZED[table.quantization]
    texts = table.calibration
    argv = (
        *("python3", tool(toolchain, "quantization/quantize.py")),
        *("--model_dir", MODEL),
        *("--output_dir", OUT),
        *("--dtype", table.dtype),
        *("--qformat", form),
        *(("--kv_cache_dtype", cache) if cache else ()),
        *("--tp_size", str(table.tp)),
        *("--pp_size", str(table.pp)),
        *(("--calib_dataset", CALIBRATION, "--calib_size", str(texts.size)) if texts is not None else ()),
        *flags({**(values or {}), **table.args}),
    )
    return (Command(argv, OFFLINE if texts is not None else {}),)


def build(recipe: Recipe) -> tuple[Command, ...]:
    """trtllm-build with the recipe's limits, every one said aloud: its defaults (batch 2048) are for other machines."""
    limits = recipe.build
    stated: dict[str, Scalar] = {
        "max_batch_size": limits.max_batch_size,
        "max_input_len": limits.max_input_len,
        "max_seq_len": limits.max_seq_len,
        "max_beam_width": limits.max_beam_width,
    }
    if limits.max_num_tokens is not None:
        stated["max_num_tokens"] = limits.max_num_tokens
    preset: dict[str, Scalar] = {"use_paged_context_fmha": True} if recipe.serve.enable_kv_cache_reuse else {}
    return (build_engine(recipe, stated, preset),)


def build_engine(recipe: Recipe, limits: Mapping[str, Scalar], preset: Mapping[str, Scalar], folder: str = "") -> Command:
    """One engine, built with exactly these ``limits``; ``build.args`` win over what is ``preset``.

    trtllm-build takes parallelism from the checkpoint, one worker for each rank. ``folder`` is the engine's place in the
    checkpoint and in the result, where there are several.
    """
    below = f"/{folder}" if folder else ""
    chosen = {"gemm_plugin": "auto", **preset}
    own = {name.replace("-", "_") for name in recipe.build.args}
    chosen = {name: value for name, value in chosen.items() if name not in own}
    argv = (
        "trtllm-build",
        *("--checkpoint_dir", f"{CHECKPOINT}{below}"),
        *("--output_dir", f"{OUT}{below}"),
        *(word for name, value in limits.items() for word in (f"--{name}", str(value))),
        *("--workers", str(recipe.convert.tp * recipe.convert.pp)),
        *flags({**chosen, **recipe.build.args}, SWITCHES),
    )
    return Command(argv)


def tree(choices: Sequence[Sequence[int]]) -> str:
    """A tree of guesses as config.pbtxt wants it: {0}, {0, 0}, {1}; each path is the ranks of the tokens on its way."""
    return ", ".join("{" + ", ".join(map(str, path)) + "}" for path in choices)


def moved(commands: Sequence[Command], places: Mapping[str, str]) -> tuple[Command, ...]:
    """The same commands with other inputs and results: each argument that is a key of ``places``, or lies below it."""
    return tuple(replace(command, argv=tuple(_moved(word, places) for word in command.argv)) for command in commands)


def _moved(word: str, places: Mapping[str, str]) -> str:
    for before, after in places.items():
        if word == before or word.startswith(f"{before}/"):
            return after + word.removeprefix(before)
    return word


def extended(commands: Sequence[Command], values: Mapping[str, Scalar]) -> tuple[Command, ...]:
    """The same builds with further flags; a flag that a command states already is left as it stands there."""
    return tuple(replace(command, argv=(*command.argv, *flags(_unstated(command, values), SWITCHES))) for command in commands)


def _unstated(command: Command, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    stated = {word.partition("=")[0].replace("-", "_") for word in command.argv if word.startswith("--")}
    return {name: value for name, value in values.items() if f"__{name.replace('-', '_')}" not in stated}


def converts(recipe: Recipe) -> bool:
    """Whether the limits of conversion scripts count: the PyTorch path (llmapi) runs none, and has rules of its own."""
    return recipe.runtime.kind is not RuntimeKind.LLMAPI


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


def check_experts(recipe: Recipe, checkpoint: Checkpoint, able: Sequence[str]) -> tuple[Problem, ...]:
    """Whether flags about experts meet a model that has some; ``able`` are the architectures that do."""
    flagged = [name for name in recipe.convert.args if name.startswith("moe_")]
    if not flagged or not checkpoint.architectures or set(checkpoint.architectures).intersection(able):
        return ()
    return (Problem("convert.args", f"{', '.join(flagged)}: this checkpoint has no experts", "take the moe_ flags away"),)


def check_one_stage(recipe: Recipe, what: str) -> tuple[Problem, ...]:
    """For scripts that leave all layers together: ``what`` is the reason, as the end of a sentence."""
    if recipe.convert.pp == 1 or not converts(recipe):
        return ()
    return (Problem("convert.pp", f"is {recipe.convert.pp}, and {what}", "set it to 1 and raise convert.tp"),)


def check_base(checkpoint: Checkpoint, able: Sequence[str], variant: str) -> tuple[Problem, ...]:
    """Whether a variant's script reads this base model; ``able`` are the architectures that it reads."""
    stated = checkpoint.architectures
    if not stated or set(stated).intersection(able):
        return ()
    what = f"{variant} stands over {', '.join(able)}, and this checkpoint is {', '.join(stated)}"
    return (Problem("variant", what, "take another variant, or none"),)


def check_decoder(checkpoint: Checkpoint, variant: str) -> tuple[Problem, ...]:
    """Whether the base model is one engine that writes, as guessing ahead needs it; an encoder with a decoder is two."""
    if not checkpoint.config.get("is_encoder_decoder"):
        return ()
    what = f"{variant} stands over a model with a decoder alone, and this one has an encoder too"
    return (Problem("variant", what, "take the variant away"),)


def check_tree(choices: Sequence[Sequence[int]], most: int) -> tuple[Problem, ...]:
    """Whether a tree of guesses can be walked: no empty path, none without its parent, and ``most`` paths at most."""
    known = {tuple(path) for path in choices}
    orphans = [path for path in choices if not path or (len(path) > 1 and tuple(path[:-1]) not in known)]
    problems: tuple[Problem, ...] = ()
    if orphans:
        what = f"hold {list(orphans[0])}, and not the path that it grows from"
        problems += (Problem("speculation.choices", what, "add every path's beginning: [0] before [0, 1]"),)
    if len(choices) > most:
        what = f"are {len(choices)} paths, above max_draft_len ({most})"
        problems += (Problem("speculation.choices", what, "raise speculation.max_draft_len, or cut the tree"),)
    return problems


def check_vocabulary(checkpoint: Checkpoint, draft: Checkpoint) -> tuple[Problem, ...]:
    """Whether base and draft speak of the same tokens, as far as the sizes of their vocabularies tell."""
    base, guessing = checkpoint.config.get("vocab_size"), draft.config.get("vocab_size")
    if not isinstance(base, int) or not isinstance(guessing, int) or base == guessing:
        return ()
    what = f"has a vocabulary of {guessing} tokens, and the model one of {base}: its guesses would be other words"
    return (Problem("draft", what, "take a draft that was made for this model"),)


def check_quantized(recipe: Recipe, checkpoint: Checkpoint, reads: Sequence[str] = ()) -> tuple[Problem, ...]:
    """Whether a conversion script can read a checkpoint that is quantized already; ``reads`` are the methods that it knows.

    NVIDIA's llama and qwen scripts take gptq and awq from config.json by themselves since 0.16, and no GPTQ that has reordered
    its columns (desc_act): llama's raises, and qwen's goes on without saying so.
    """
    found, form = quantized(checkpoint.config), recipe.convert.quantization
    if recipe.runtime.kind is not RuntimeKind.ENGINE:
        return ()
    if form in GPTQ and (not reads or (checkpoint.config and (found is None or found.method != "gptq"))):
        why = "the checkpoint is not packed by GPTQ" if reads else "this script does not read it"
        hint = "int8_weight_only and int4_weight_only quantize what is not quantized"
        return (Problem("convert.quantization", f"is {form!r}, and {why}", hint),)
    return _packed(found, form, reads) if found is not None and found.method in PACKED else ()


def _packed(found: Quantized, form: str, reads: Sequence[str]) -> tuple[Problem, ...]:
    whole = "take the checkpoint that is not quantized, with convert.quantization"
    if found.method not in reads:
        what = f"is quantized already ({found}), and this family's conversion script does not read that"
        return (Problem("source", what, whole),)
    if found.reordered:
        what = "is packed by GPTQ with desc_act = true, which NVIDIA's scripts do not implement"
        return (Problem("source", what, f"take one that was made with desc_act = false; or {whole}"),)
    if form not in ("none", *GPTQ):
        what = f"is {form!r}, and the checkpoint is quantized already ({found})"
        return (Problem("convert.quantization", what, 'say "none": the script reads what config.json says'),)
    return ()


def check_quantization(recipe: Recipe, able: Sequence[str], variant: str) -> tuple[Problem, ...]:
    """Whether a script knows the recipe's quantization; ``able`` are those that it knows besides none."""
    form = recipe.convert.quantization
    if form in ("none", *able) or not converts(recipe):
        return ()
    hint = f"it knows {', '.join(('none', *able))}"
    return (Problem("convert.quantization", f"is {form!r}, which {variant} does not know", hint),)
