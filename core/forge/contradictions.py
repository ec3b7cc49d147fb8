"""Rules between a recipe's keys, as data: the keys that a rule weighs, when they contradict each other, the mend."""

from collections.abc import Callable
from dataclasses import dataclass

from forge.errors import Problem
from forge.model import Recipe, Role, RuntimeKind

SPECULATIVE = ("medusa", "eagle", "redrafter", "lookahead")
"""Variants that guess several tokens ahead; TensorRT-LLM runs them with one beam."""
DRAFTED = ("medusa", "eagle", "redrafter")
"""Variants that read a second checkpoint."""

_SET_BY_FORGE = {
    "convert": {
        "model_dir": "source",
        "output_dir": "",
        "output_model_dir": "",
        "ckpt_type": "",
        "dtype": "convert.dtype",
        "tp_size": "convert.tp",
        "world_size": "convert.tp",
        "pp_size": "convert.pp",
        "qformat": "convert.quantization",
        "use_weight_only": "convert.quantization",
        "weight_only_precision": "convert.quantization",
    },
    "build": {
        "checkpoint_dir": "",
        "output_dir": "",
        "max_batch_size": "build.max_batch_size",
        "max_input_len": "build.max_input_len",
        "max_seq_len": "build.max_seq_len",
        "max_beam_width": "build.max_beam_width",
        "max_num_tokens": "build.max_num_tokens",
    },
}


@dataclass(frozen=True, slots=True)
class _Rule:
    """``keys`` are weighed, the problem is shown at the first; ``says`` what is wrong, or "" where all is well."""

    keys: tuple[str, ...]
    says: Callable[[Recipe], str]
    hint: str


def contradictions(recipe: Recipe, broken: frozenset[str]) -> tuple[Problem, ...]:
    """What contradicts what in ``recipe``. Rules over a key in ``broken`` are left out: that key is shown already."""
    return (
        *(
            Problem(rule.keys[0], what, rule.hint)
            for rule in _RULES
            if not broken.intersection(rule.keys) and (what := rule.says(recipe))
        ),
        *_forges_own_flags(recipe),
        *(_raw_parameters(recipe) if "serve.stream" not in broken else ()),
    )


def _forges_own_flags(recipe: Recipe) -> tuple[Problem, ...]:
    stated = {"convert": recipe.convert.args, "build": recipe.build.args}
    return tuple(
        Problem(f"{table}.args.{flag}", "forge sets this flag itself", f"set {owner}" if owner else "take it away")
        for table, owners in _SET_BY_FORGE.items()
        for flag in stated[table]
        if (owner := owners.get(flag.replace("-", "_"))) is not None
    )


def _raw_parameters(recipe: Recipe) -> tuple[Problem, ...]:
    problems: list[Problem] = []
    for role in (Role.TENSORRT_LLM, Role.BLS):
        stated = recipe.serve.parameters.get(role, {}).get("decoupled_mode")
        if stated is not None and str(stated).lower() != str(recipe.serve.stream).lower():
            what = f"is {stated!r} and serve.stream is {str(recipe.serve.stream).lower()}: streaming needs both alike"
            problems.append(Problem(f"serve.parameters.{role}.decoupled_mode", what, "set serve.stream alone"))
    batch = recipe.serve.parameters.get(Role.TENSORRT_LLM, {}).get("triton_max_batch_size")
    if str(batch).isdecimal() and int(str(batch)) > recipe.build.max_batch_size:
        what = f"is {batch}, above build.max_batch_size ({recipe.build.max_batch_size})"
        where = f"serve.parameters.{Role.TENSORRT_LLM}.triton_max_batch_size"
        problems.append(Problem(where, what, "lower it, or build the engine for larger batches"))
    return tuple(problems)


def _input_above_sequence(recipe: Recipe) -> str:
    build = recipe.build
    over = build.max_input_len > build.max_seq_len
    return f"is {build.max_input_len}, above build.max_seq_len ({build.max_seq_len})" if over else ""


def _beams_above_engine(recipe: Recipe) -> str:
    asked, built = recipe.sampling.beam_width or 1, recipe.build.max_beam_width
    return f"is {asked}, above build.max_beam_width ({built})" if asked > built else ""


def _no_room_for_a_prompt(recipe: Recipe) -> str:
    asked, room = recipe.sampling.max_tokens, recipe.build.max_seq_len
    unstated = asked == type(recipe.sampling)().max_tokens
    if unstated or asked < room:
        return ""
    return f"is {asked} and leaves no room for a prompt in build.max_seq_len ({room})"


def _fewer_than_least(recipe: Recipe) -> str:
    least, most = recipe.sampling.min_tokens or 0, recipe.sampling.max_tokens
    return f"is {least}, above sampling.max_tokens ({most})" if least > most else ""


def _draft_without_variant(recipe: Recipe) -> str:
    return "is given, and no variant reads it" if recipe.draft is not None and recipe.variant is None else ""


def _variant_without_draft(recipe: Recipe) -> str:
    missing = recipe.variant in DRAFTED and recipe.draft is None
    return f"{recipe.variant} reads a second checkpoint, and there is no [draft]" if missing else ""


def _lookahead_with_draft(recipe: Recipe) -> str:
    return "lookahead reads no second checkpoint" if recipe.variant == "lookahead" and recipe.draft is not None else ""


def _beams_when_speculating(recipe: Recipe) -> str:
    beams = max(recipe.build.max_beam_width, recipe.sampling.beam_width or 1)
    return f"{recipe.variant} works with one beam, found {beams}" if recipe.variant in SPECULATIVE and beams > 1 else ""


def _warm_medusa(recipe: Recipe) -> str:
    warmth = recipe.sampling.temperature or 0
    return f"is {warmth}, and medusa takes the likeliest token only" if recipe.variant == "medusa" and warmth else ""


def _medusa_dtype(recipe: Recipe) -> str:
    auto = recipe.variant == "medusa" and recipe.convert.dtype == "auto"
    return "is 'auto', which medusa's script does not know" if auto else ""


def _eagle_in_stages(recipe: Recipe) -> str:
    staged = recipe.variant == "eagle" and recipe.convert.pp > 1
    return f"is {recipe.convert.pp}, and eagle's script refuses pipeline parallelism" if staged else ""


def _packages_without_twin(recipe: Recipe) -> str:
    idle = recipe.runtime.packages and recipe.runtime.kind is not RuntimeKind.TWIN
    return f"are for the twin, and the runtime is {recipe.runtime.kind}" if idle else ""


def _reuse_without_paging(recipe: Recipe) -> str:
    flags = {flag.replace("-", "_"): value for flag, value in recipe.build.args.items()}
    off = flags.get("use_paged_context_fmha") in ("disable", False)
    return "needs paged context FMHA, and build.args turns it off" if recipe.serve.enable_kv_cache_reuse and off else ""


_RULES = (
    _Rule(("build.max_input_len", "build.max_seq_len"), _input_above_sequence, "prompt and answer share max_seq_len"),
    _Rule(("sampling.beam_width", "build.max_beam_width"), _beams_above_engine, "raise build.max_beam_width"),
    _Rule(("sampling.max_tokens", "build.max_seq_len"), _no_room_for_a_prompt, "lower it, or raise build.max_seq_len"),
    _Rule(("sampling.min_tokens", "sampling.max_tokens"), _fewer_than_least, "lower it, or raise sampling.max_tokens"),
    _Rule(("draft", "variant"), _draft_without_variant, 'take [draft] away, or name one: variant = "eagle"'),
    _Rule(("variant", "draft"), _variant_without_draft, "add a [draft] table; its keys are those of [source]"),
    _Rule(("draft", "variant"), _lookahead_with_draft, "take [draft] away"),
    _Rule(
        ("variant", "build.max_beam_width", "sampling.beam_width"),
        _beams_when_speculating,
        "set build.max_beam_width and sampling.beam_width to 1",
    ),
    _Rule(("sampling.temperature", "variant"), _warm_medusa, "set it to 0"),
    _Rule(("convert.dtype", "variant"), _medusa_dtype, "say float16 or bfloat16"),
    _Rule(("convert.pp", "variant"), _eagle_in_stages, "set it to 1 and raise convert.tp"),
    _Rule(("runtime.packages", "runtime.kind"), _packages_without_twin, "take them away, or use --runtime twin"),
    _Rule(("serve.enable_kv_cache_reuse", "build.args"), _reuse_without_paging, "drop use_paged_context_fmha there"),
)
