"""What the PyTorch path cannot do for a recipe, each with what to take instead. Pure.

Facts from TensorRT-LLM's sources: which speculation ``supports_backend("pytorch")``, which quantizations its loader reads.
"""

import re
from collections.abc import Iterator

from msgspec.structs import asdict

from forge.errors import Problem, meant
from forge.plan.resolved import Resolved
from forge.schema.sight import blind
from forge.schema.values import Recipe, Role, RuntimeKind
from forge.trtllm.commands import older
from forge.trtllm.llm_args import Assets, known, names as named, read, stated

_EAGLE_3 = 'variant = "eagle" with an EAGLE-3 head as [draft]'
_QUANTIZED_BEFORE = (
    'set it to "none", and name a [source] that is quantized already: LLM() reads what Model Optimizer left beside the weights '
    "(hf_quant_config.json), as in nvidia/Llama-3.1-8B-Instruct-FP8"
)
_CACHE_ONLY = 'set it to "none"; what can be narrowed here is the cache: "fp8_kv"'
_QUANTIZATIONS = {
    **dict.fromkeys(("fp8", "int4_awq", "w4a8_awq"), _QUANTIZED_BEFORE),
    **dict.fromkeys(("int8_weight_only", "int4_weight_only", "int8_sq", "int8_kv"), _CACHE_ONLY),
}
"""Quantizations that nothing here computes -> the fix."""
_TREE = ("num_eagle_layers", "max_non_leaves_per_layer", "choices")
_COMMENT = re.compile(r"#[^\n]*")
_INPUT = re.compile(r'\bname\s*:\s*"(sampling_param_\w+)"')
_BATCH = "triton_max_batch_size"


def problems(resolved: Resolved) -> Iterator[Problem]:
    """All that is wrong; ``where`` is the recipe's key."""
    recipe = resolved.recipe
    yield from _variant(resolved)
    yield from _conversion(recipe)
    yield from _arguments(resolved)
    yield from _serving(recipe)
    yield from _sampling(resolved)
    if resolved.facts.checkpoint.config.get("is_encoder_decoder"):
        what = "the PyTorch path serves models with a decoder alone, and this one has an encoder too"
        yield Problem("runtime.kind", what, 'say "engine"')
    if recipe.build.max_beam_width > 1:
        what = f"is {recipe.build.max_beam_width}, and the llmapi model offers no beams"
        yield Problem("build.max_beam_width", what, 'set it to 1, or say runtime.kind = "engine"')


def doubts(resolved: Resolved) -> Iterator[str]:
    """What may be wrong: arguments of an LLM() whose version nobody knows; a checkpoint of which half is used."""
    if "vision_config" in resolved.facts.checkpoint.config:
        yield f"the checkpoint can see, and is served for its texts: {blind(RuntimeKind.LLMAPI)}"
    if not resolved.facts.toolchain.trtllm:
        for path in _strange(resolved):
            yield f"build.args.{path} is no argument of LLM() that forge knows; the image has the last word"


def _variant(resolved: Resolved) -> Iterator[Problem]:
    recipe, tools = resolved.recipe, resolved.facts.toolchain
    match recipe.variant:
        case "medusa" | "redrafter":
            what = f"TensorRT-LLM has {recipe.variant} for engines alone, and the PyTorch path refuses it"
            yield Problem("variant", what, f"take {_EAGLE_3}; a medusa or redrafter head is none")
        case "lookahead":
            ahead = "prompt_lookup_num_tokens" if older(tools, "1.0") else "max_draft_len"
            ngram = f'"speculative_config.decoding_type" = "NGram", "speculative_config.{ahead}" = 4'
            hint = (
                f"take it away with [speculation]; what guesses without a second checkpoint here is build.args = {{ {ngram} }}"
            )
            yield Problem("variant", "TensorRT-LLM has lookahead for engines alone, and the PyTorch path refuses it", hint)
        case "draft-target" if older(tools, "0.21"):
            what = f"the PyTorch path of TensorRT-LLM {tools.trtllm} knows no draft-target"
            yield Problem("variant", what, 'take an image from "25.08" on')
        case "eagle":
            yield from _eagle(resolved)
        case _:
            pass


def _eagle(resolved: Resolved) -> Iterator[Problem]:
    config, table = resolved.facts.draft_checkpoint.config, asdict(resolved.recipe.speculation)
    if config and "draft_vocab_size" not in config and not any("eagle3" in str(each).lower() for each in config.values()):
        what = "the PyTorch path reads EAGLE-3 heads, and this looks like one of EAGLE 1 or 2"
        yield Problem("draft", what, "name one such as yuhuili/EAGLE3-LLaMA3.1-Instruct-8B, made for this very [source]")
    for key in _TREE:
        if table[key]:
            yield Problem(
                f"speculation.{key}", "shapes the tree of an engine; the PyTorch path guesses a chain", "take it away"
            )


def _conversion(recipe: Recipe) -> Iterator[Problem]:
    table = recipe.convert
    if fix := _QUANTIZATIONS.get(table.quantization):
        what = f"is {table.quantization!r}, and the PyTorch path quantizes no weights: it reads them as they are"
        yield Problem("convert.quantization", what, fix)
    if table.args:
        yield Problem("convert.args", "nothing is converted, so no script takes them", "take them away")
    if table.calibration is not None:
        yield Problem("convert.calibration", "nothing is calibrated", "take it away")


def _arguments(resolved: Resolved) -> Iterator[Problem]:
    """``build.args``, which are arguments of LLM() here."""
    strange = _strange(resolved) if resolved.facts.toolchain.trtllm else {}
    broken = False
    for path, value in resolved.recipe.build.args.items():
        where = f"build.args.{path}"
        owners = [owner for name, owner in named().set_by_forge.items() if path == name or path.startswith(f"{name}.")]
        if owners:
            yield Problem(where, "forge sets this argument itself", f"set {owners[0]}" if owners[0] else "take it away")
        elif any(name.startswith(f"{path}.") for name in named().set_by_forge):
            yield Problem(where, "forge sets parts of it", f'write what you want of it alone: "{path}.KEY" = ...')
        elif path in strange:
            yield Problem(where, f"LLM() of TensorRT-LLM {resolved.facts.toolchain.trtllm} has no such argument", strange[path])
        if isinstance(value, str) and not value.isprintable():
            yield Problem(where, "holds characters that YAML does not", "take them away")
        try:
            read(value)
        except ValueError as error:
            broken = True
            yield Problem(where, str(error), 'a list in text: "[1, 2, 4]"')
    if not broken:
        try:
            stated(resolved.recipe, resolved.facts.toolchain, Assets(""))
        except ValueError as error:
            yield Problem("build.args", str(error))


def _strange(resolved: Resolved) -> dict[str, str]:
    """Arguments that LLM() is not known to have -> what may be meant."""
    names = known(resolved.facts.toolchain)
    found: dict[str, str] = {}
    for path in resolved.recipe.build.args:
        top = path.partition(".")[0]
        if top not in names and top not in named().set_by_forge:
            found[path] = _meant(top, names)
    return found


def _meant(name: str, names: frozenset[str]) -> str:
    if later := named().renamed.get(name):
        return f"since TensorRT-LLM 1.0 write {later}"
    if side := named().side(name):
        return f"LLM() had it {side} TensorRT-LLM 1.0: take it away, or take such an image"
    return meant(name, names, "flags of trtllm-build mean nothing here: take it away")


def _serving(recipe: Recipe) -> Iterator[Problem]:
    serve = recipe.serve
    if serve.instances is not None:
        what = "one llmapi model carries all requests side by side, build.max_batch_size of them at once"
        yield Problem("serve.instances", what, "take it away")
    if serve.max_queue_delay_microseconds:
        yield Problem("serve.max_queue_delay_microseconds", "Triton queues nothing for llmapi", "take it away")
    for role in serve.parameters:
        if role is not Role.TENSORRT_LLM:
            yield Problem(f"serve.parameters.{role}", "there is no such model: llmapi is one, tensorrt_llm", "take it away")
    if str(serve.parameters.get(Role.TENSORRT_LLM, {}).get(_BATCH, 0)) != "0":
        what = "has to be 0: the llmapi model takes one prompt a request, and LLM() batches requests itself"
        yield Problem(f"serve.parameters.{Role.TENSORRT_LLM}.{_BATCH}", what, "take it away; build.max_batch_size bounds it")


def _sampling(resolved: Resolved) -> Iterator[Problem]:
    """What every request would ask for, and the image's model has no input for."""
    config = (
        next((each.content for each in resolved.tooling.llmapi if each.path == "config.pbtxt"), "") if resolved.tooling else ""
    )
    offered = set(_INPUT.findall(_COMMENT.sub("", config)))
    for word, value in asdict(resolved.recipe.sampling).items() if offered else ():
        if value not in (None, ()) and f"sampling_param_{word}" not in offered:
            names = ", ".join(sorted(name.removeprefix("sampling_param_") for name in offered))
            yield Problem(f"sampling.{word}", "the image's llmapi model has no input for it", f"it takes: {names}")
