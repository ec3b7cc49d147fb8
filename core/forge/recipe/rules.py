"""Rules between a recipe's keys, as data: the keys that a rule weighs, when they contradict each other, the fix."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from forge.errors import Problem
from forge.files import texts
from forge.schema.recipe import QUANTIZED
from forge.schema.values import Recipe, Role, RuntimeKind, SourceKind, SpeculationTable

SPECULATIVE = {
    "draft-target": ("max_draft_len",),
    "eagle": ("max_draft_len", "num_eagle_layers", "max_non_leaves_per_layer", "choices"),
    "lookahead": ("window_size", "ngram_size", "verification_set_size"),
    "medusa": ("max_draft_len", "num_medusa_heads", "choices"),
    "ngram": ("max_draft_len", "ngram_size"),
    "redrafter": ("num_beams", "draft_len_per_beam"),
}
"""Variants that guess several tokens ahead, with one beam -> the keys of [speculation] that they read."""
DRAFTED = ("draft-target", "eagle", "medusa", "redrafter")
"""Variants that read a second checkpoint."""
WITHOUT_AUTO = ("medusa", "redrafter")
"""Variants whose conversion scripts know no dtype auto."""
ADAPTERS = (SourceKind.HUB, SourceKind.GIT, SourceKind.PATH)
"""Sources that an adapter can have."""
PAGED = ("draft-target", "eagle")
"""Variants that need paged context FMHA."""


class _Flags(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Flags of NVIDIA's scripts and of trtllm-build that a recipe's ``args`` cannot simply have (flags.toml)."""

    convert: Mapping[str, str]
    build: Mapping[str, str]
    paths: frozenset[str]
    decoding: Mapping[str, str]
    unpacked: Mapping[str, tuple[str, ...]]


@cache
def _flags() -> _Flags:
    return texts.shipped("forge.recipe", "flags.toml", _Flags)


_OUTSIDE = ("/", "./", "../", "~/")
_INSIDE = ("/app/", "/opt/", "/usr/", "/forge/")
"""Where what an image brings stands, and what a step mounts."""
_MOUNTED = "take it away; what stands in the image is named by its whole path there (/app/..., /opt/..., /usr/...)"
_ADAPTERS = "take it away, and name the adapter under [[lora]]"


class _Rule(Struct, frozen=True):
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
        *_paths(recipe),
        *_idle_speculation(recipe, broken),
        *(_adapters(recipe) if not any(key.startswith("lora") for key in broken) else ()),
        *(_raw_parameters(recipe) if "serve.stream" not in broken else ()),
    )


def _forges_own_flags(recipe: Recipe) -> tuple[Problem, ...]:
    set_by = _flags()
    return tuple(
        Problem(f"{table}.args.{flag}", "forge sets this flag itself", f"set {owner}" if owner else "take it away")
        for table, owners, stated in (
            ("convert", set_by.convert, recipe.convert.args),
            ("build", set_by.build, recipe.build.args),
        )
        for flag in stated
        if (owner := owners.get(flag.replace("-", "_"))) is not None
    )


def _paths(recipe: Recipe) -> tuple[Problem, ...]:
    """Flags that name files or folders, which a command would not find: only what is an input of the recipe is mounted, and
    only that enters the key. What stands in the image is named by its whole path there.
    """
    problems: list[Problem] = []
    flags = _flags()
    for table, values, own in (("convert", recipe.convert.args, flags.convert), ("build", recipe.build.args, flags.build)):
        for flag, value in values.items():
            name = flag.rpartition(".")[2].replace("-", "_")
            named = name in flags.paths and isinstance(value, str)
            if (named or str(value).startswith(_OUTSIDE)) and not str(value).startswith(_INSIDE) and name not in own:
                what = f"names {value!r}, which the command will not see: no input of the recipe, so neither mounted nor hashed"
                problems.append(Problem(f"{table}.args.{flag}", what, _ADAPTERS if "lora" in name else _MOUNTED))
    return tuple(problems)


def _adapters(recipe: Recipe) -> Iterator[Problem]:
    """Adapters are told apart by their names, and come in safetensors."""
    seen: dict[str, str] = {}
    for at, each in enumerate(recipe.lora):
        if other := seen.get(each.name.casefold()):
            alike = "as another adapter's" if other == each.name else f"and another is {other!r}: some disks take them for one"
            yield Problem(f"lora[{at}].name", f"is {each.name!r}, {alike}", "give each a name of its own")
        seen[each.name.casefold()] = each.name
        if each.kind not in ADAPTERS:
            what = f"a {each.kind} holds no adapter as PEFT saves it"
            yield Problem(f"lora[{at}].{each.kind}", what, "name a hub repository, a git repository or a folder")
        if each.allow_pickle:
            yield Problem(f"lora[{at}].allow_pickle", "adapters are read from safetensors alone", "take it away")


def _idle_speculation(recipe: Recipe, broken: frozenset[str]) -> tuple[Problem, ...]:
    """Keys of [speculation] that nobody reads. What a stranger's variant reads is not known here."""
    unset = asdict(SpeculationTable())
    stated = [key for key, value in asdict(recipe.speculation).items() if value != unset[key]]
    if recipe.variant is None:
        return (
            (Problem("speculation", "is given, and no variant reads it", 'name one: variant = "lookahead"'),) if stated else ()
        )
    read = SPECULATIVE.get(recipe.variant)
    if read is None or "variant" in broken:
        return ()
    hint = f"it reads {', '.join(read)}"
    return tuple(Problem(f"speculation.{key}", f"{recipe.variant} does not read it", hint) for key in stated if key not in read)


def _raw_parameters(recipe: Recipe) -> tuple[Problem, ...]:
    problems: list[Problem] = []
    if recipe.serve.parameters.get(Role.DRAFT) and recipe.variant in (None, *SPECULATIVE) and recipe.variant != "draft-target":
        where = f"serve.parameters.{Role.DRAFT}"
        problems.append(Problem(where, "there is no such model without the variant draft-target", "take it away"))
    if recipe.serve.parameters.get(Role.VLLM):
        problems.append(
            Problem(f"serve.parameters.{Role.VLLM}", "its config.pbtxt has none", "vLLM's arguments go under [serve.vllm]")
        )
    for role in (Role.TENSORRT_LLM, Role.BLS, Role.DRAFT):
        stated = recipe.serve.parameters.get(role, {}).get("decoupled_mode")
        if stated is not None and str(stated).lower() != str(recipe.serve.stream).lower():
            what = f"is {stated!r} and serve.stream is {str(recipe.serve.stream).lower()}: streaming needs both alike"
            problems.append(Problem(f"serve.parameters.{role}.decoupled_mode", what, "set serve.stream alone"))
    problems += _asked_of_the_engine(recipe)
    batch = recipe.serve.parameters.get(Role.TENSORRT_LLM, {}).get("triton_max_batch_size")
    if str(batch).isdecimal() and int(str(batch)) > recipe.build.max_batch_size:
        what = f"is {batch}, above build.max_batch_size ({recipe.build.max_batch_size})"
        where = f"serve.parameters.{Role.TENSORRT_LLM}.triton_max_batch_size"
        problems.append(Problem(where, what, "lower it, or build the engine for larger batches"))
    return tuple(problems)


def _asked_of_the_engine(recipe: Recipe) -> Iterator[Problem]:
    """Raw parameters for which the engine would have to be built otherwise: TensorRT-LLM says so only when it is loaded."""
    if recipe.runtime.kind is not RuntimeKind.ENGINE:
        return
    stated = recipe.serve.parameters.get(Role.TENSORRT_LLM, {})
    where = f"serve.parameters.{Role.TENSORRT_LLM}"
    mode = str(stated.get("decoding_mode", "")).lower()
    variant = _flags().decoding.get(mode)
    if variant and recipe.variant in (None, *SPECULATIVE) and recipe.variant != variant:
        what = f"is {mode!r}, and the engine is not built for that"
        yield Problem(f"{where}.decoding_mode", what, f'set variant = "{variant}", which sets it too; or take it away')
    name = recipe.serve.parameters.get(Role.BLS, {}).get("tensorrt_llm_draft_model_name")
    if name and recipe.variant in (None, *SPECULATIVE) and recipe.variant != "draft-target":
        what = f"is {name!r}, and the engine takes no draft tokens"
        hint = 'set variant = "draft-target", which names the draft\'s model too; or take it away'
        yield Problem(f"serve.parameters.{Role.BLS}.tensorrt_llm_draft_model_name", what, hint)
    if str(stated.get("gpt_model_type") or stated.get("batching_strategy") or "inflight").lower().startswith("inflight"):
        for flag, value in recipe.build.args.items():
            if str(value).lower() in _flags().unpacked.get(flag.replace("-", "_"), ()):
                what = "is off, and batching in flight needs gpt_attention_plugin, packed inputs and a paged KV cache"
                hint = f'take it away; or say {where}.batching_strategy = "V1"'
                yield Problem(f"build.args.{flag}", what, hint)


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


def _min_p_of_nvidias(recipe: Recipe) -> str:
    nvidias = recipe.sampling.min_p is not None and recipe.runtime.kind in (RuntimeKind.ENGINE, RuntimeKind.LLMAPI)
    return f"is {recipe.sampling.min_p}, and NVIDIA's models have no input for it" if nvidias else ""


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


def _of_vllm(recipe: Recipe) -> str:
    elsewhere = recipe.variant == "ngram" and recipe.runtime.kind is not RuntimeKind.VLLM
    return f"ngram is vLLM's, and the runtime is {recipe.runtime.kind}" if elsewhere else ""


def _warm_medusa(recipe: Recipe) -> str:
    warmth = recipe.sampling.temperature or 0
    only = recipe.variant == "medusa" and recipe.runtime.kind is not RuntimeKind.VLLM
    return f"is {warmth}, and medusa takes the likeliest token only" if only and warmth else ""


def _variants_dtype(recipe: Recipe) -> str:
    converted = recipe.runtime.kind is not RuntimeKind.VLLM
    auto = converted and recipe.variant in WITHOUT_AUTO and recipe.convert.dtype == "auto"
    return f"is 'auto', which {recipe.variant}'s script does not know" if auto else ""


def _eagle_in_stages(recipe: Recipe) -> str:
    scripted = recipe.runtime.kind is not RuntimeKind.LLMAPI  # which converts nothing
    staged = recipe.variant == "eagle" and recipe.convert.pp > 1 and scripted
    return f"is {recipe.convert.pp}, and eagle's script refuses pipeline parallelism" if staged else ""


def _packages_without_twin(recipe: Recipe) -> str:
    idle = recipe.runtime.packages and recipe.runtime.kind.contained
    return f"are for the twin and vLLM, and the runtime is {recipe.runtime.kind}" if idle else ""


def _narrowed_by_others(recipe: Recipe) -> str:
    idle = recipe.runtime.weights and recipe.runtime.kind is not RuntimeKind.TWIN
    return f"is for the twin, and the runtime is {recipe.runtime.kind}" if idle else ""


def _unpaged(recipe: Recipe) -> bool:
    flags = {flag.replace("-", "_"): value for flag, value in recipe.build.args.items()}
    return flags.get("use_paged_context_fmha") in ("disable", False)


def _reuse_without_paging(recipe: Recipe) -> str:
    wrong = recipe.serve.enable_kv_cache_reuse and _unpaged(recipe)
    return "needs paged context FMHA, and build.args turns it off" if wrong else ""


def _variant_without_paging(recipe: Recipe) -> str:
    wrong = recipe.variant in PAGED and _unpaged(recipe)
    return f"{recipe.variant} needs paged context FMHA, and build.args turns it off" if wrong else ""


def _calibrated_with_nothing(recipe: Recipe) -> str:
    lacking = recipe.convert.quantization in QUANTIZED and recipe.convert.calibration is None
    if not lacking or recipe.runtime.kind is not RuntimeKind.ENGINE:  # nothing else converts
        return ""
    return f"{recipe.convert.quantization} is calibrated on texts, and there is no [convert.calibration]"


def _calibrated_in_vain(recipe: Recipe) -> str:
    idle = recipe.convert.calibration is not None and recipe.convert.quantization not in QUANTIZED
    return f"is given, and the quantization {recipe.convert.quantization!r} reads no texts" if idle else ""


def _calibrated_on_a_model(recipe: Recipe) -> str:
    texts = recipe.convert.calibration
    return "a GGUF file holds a model and no texts" if texts is not None and texts.gguf is not None else ""


def _calibrated_on_articles(recipe: Recipe) -> str:
    """quantize.py knows these two by their names alone, which a mounted folder has not."""
    texts = recipe.convert.calibration
    told = str(texts.hub).lower() if texts is not None else ""
    named = [name for name in ("cnn_dailymail", "scienceqa") if name in told]
    return f"{named[0]} has no column `text`, which is what NVIDIA's quantize.py reads of a folder" if named else ""


_RULES = (
    _Rule(("sampling.beam_width", "build.max_beam_width"), _beams_above_engine, "raise build.max_beam_width"),
    _Rule(("sampling.max_tokens", "build.max_seq_len"), _no_room_for_a_prompt, "lower it, or raise build.max_seq_len"),
    _Rule(("sampling.min_p", "runtime.kind"), _min_p_of_nvidias, "take it away; the runtimes twin and vllm have it"),
    _Rule(("sampling.min_tokens", "sampling.max_tokens"), _fewer_than_least, "lower it, or raise sampling.max_tokens"),
    _Rule(("draft", "variant"), _draft_without_variant, 'take [draft] away, or name one: variant = "eagle"'),
    _Rule(("variant", "draft"), _variant_without_draft, "add a [draft] table; its keys are those of [source]"),
    _Rule(("draft", "variant"), _lookahead_with_draft, "take [draft] away"),
    _Rule(
        ("variant", "build.max_beam_width", "sampling.beam_width"),
        _beams_when_speculating,
        "set build.max_beam_width and sampling.beam_width to 1",
    ),
    _Rule(("variant", "runtime.kind"), _of_vllm, 'take it away, or say runtime.kind = "vllm"'),
    _Rule(("sampling.temperature", "variant", "runtime.kind"), _warm_medusa, "set it to 0"),
    _Rule(("convert.dtype", "variant", "runtime.kind"), _variants_dtype, "say float16 or bfloat16"),
    _Rule(("convert.pp", "variant", "runtime.kind"), _eagle_in_stages, "set it to 1 and raise convert.tp"),
    _Rule(("runtime.packages", "runtime.kind"), _packages_without_twin, "take them away, or use --runtime twin"),
    _Rule(("runtime.weights", "runtime.kind"), _narrowed_by_others, "take it away; convert.quantization is for the others"),
    _Rule(("serve.enable_kv_cache_reuse", "build.args"), _reuse_without_paging, "drop use_paged_context_fmha there"),
    _Rule(("variant", "build.args"), _variant_without_paging, "drop use_paged_context_fmha there"),
    _Rule(
        ("convert.quantization", "convert.calibration", "runtime.kind"),
        _calibrated_with_nothing,
        'add [convert.calibration] with a data set that has a column `text`, such as hub = "NeelNanda/pile-10k"',
    ),
    _Rule(("convert.calibration", "convert.quantization"), _calibrated_in_vain, "take it away"),
    _Rule(
        ("convert.calibration.hub", "convert.calibration"),
        _calibrated_on_articles,
        'name another, such as hub = "NeelNanda/pile-10k"',
    ),
    _Rule(("convert.calibration.gguf", "convert.calibration"), _calibrated_on_a_model, "name a data set by hub, git or path"),
)
