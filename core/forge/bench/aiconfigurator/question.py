"""A recipe, a card and a goal as AIConfigurator is asked for them; what it has no answer to is refused, with why. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from forge.bench.aiconfigurator import known
from forge.bench.tune.goal import QUALITY, Goal
from forge.bench.tune.space import Axes
from forge.errors import BenchError
from forge.plan.resolved import Resolved
from forge.schema.values import Recipe, RuntimeKind
from forge.schema.vllm_environment import GPU, chosen

FAR = 2_000_000.0
"""Milliseconds that limit nothing: what AIConfigurator's own matrix of what it supports asks with."""
KEYS: tuple[str, ...] = ("convert.tp", "convert.pp", "build.max_batch_size", "concurrency")
"""What an answer speaks of, and so what can be varied."""
FIGURES = {"output_tokens_per_s": "tokens_per_s", "requests_per_s": "requests_per_s"}
TIMES = {"ttft": "ttft_ms", "itl": "tpot_ms", "latency": "latency_ms"}
_MEASURE = "`forge tune` without --offline measures it"
_QUANTIZED: Mapping[str, Mapping[str, object]] = {"none": {}, "fp8": {"quant_method": "modelopt", "quant_algo": "FP8"}}


class Question(Struct, frozen=True, kw_only=True):
    """What ``ask.py`` reads. Lengths in tokens; ``parallel`` are pairs of tp and pp, a search each."""

    config: dict[str, Any]
    system: str
    backend: str
    version: str
    input_tokens: int
    output_tokens: int
    ttft_ms: float
    tpot_ms: float
    fraction: float | None
    """Of a card's memory, as the backend counts it; None: the backend's usual."""
    max_seq_len: int
    parallel: tuple[tuple[int, int], ...]


def question(resolved: Resolved, card: str, goal: Goal, axes: Axes, lengths: tuple[int, int]) -> tuple[Question, str]:
    """The question, and what has to be said about it; ``lengths`` are those of prompts and answers.

    BenchError for a model, a backend, a key or a figure that AIConfigurator knows nothing of, HostError for such a card.
    """
    recipe = resolved.recipe
    _require_goal(goal)
    _require_axes(axes)
    if sum(lengths) > recipe.build.max_seq_len:
        raise BenchError(f"{lengths[0]} tokens in and {lengths[1]} out are more than build.max_seq_len", where=recipe.name)
    backend, wanted = _backend(resolved)
    config = _config(resolved)
    system = known.system(card)
    backends = known.data().versions[system]
    have = backends.get(backend, ())
    if not have:
        raise BenchError(f"AIConfigurator has no data of {backend} on {system}", hint=f"it has {', '.join(backends)}")
    version = known.nearest(have, wanted)
    said = [*_differing(recipe, goal)]
    if version != wanted:
        unknown = f"it has no data of {backend} {wanted or 'of an unstated version'} on {system}, only of {', '.join(have)}"
        said.insert(0, f"{unknown}: {version} is predicted")
    asked = Question(
        config=config,
        system=system,
        backend=backend,
        version=version,
        input_tokens=lengths[0],
        output_tokens=lengths[1],
        ttft_ms=_most(goal, "ttft"),
        tpot_ms=_most(goal, "itl"),
        fraction=_fraction(recipe),
        max_seq_len=recipe.build.max_seq_len,
        parallel=tuple((tp, pp) for tp in _whole(axes, recipe, 0) for pp in _whole(axes, recipe, 1)),
    )
    return asked, "; ".join(said)


def column(figure: str) -> str:
    """The name in an answer of a figure of forge's; empty where it has none. A time is one number there, no distribution."""
    return FIGURES.get(figure) or TIMES.get(figure.partition("_")[0], "")


def _differing(recipe: Recipe, goal: Goal) -> Iterator[str]:
    """Where what is predicted is not quite what was asked for."""
    if recipe.runtime.kind is RuntimeKind.ENGINE:  # every configuration that it writes for trtllm says `backend: pytorch`
        yield "its trtllm is TensorRT-LLM's PyTorch backend: an engine may be faster or slower"
    shares = [each for each in goal.figures if each not in FIGURES and not each.endswith("_mean")]
    if shares:
        yield f"its times are means: {', '.join(shares)} may be worse"


def _require_goal(goal: Goal) -> None:
    for figure in goal.figures:
        if figure == QUALITY or not column(figure):
            known_ones = ", ".join([*FIGURES, *(f"{time}_mean" for time in TIMES)])
            raise BenchError(f"AIConfigurator predicts no {figure}", hint=f"it predicts {known_ones}; {_MEASURE}")


def _require_axes(axes: Axes) -> None:
    for key, values in axes.items():
        if key not in KEYS:
            raise BenchError(f"AIConfigurator predicts nothing of {key}", where="--vary", hint=f"{', '.join(KEYS)}; {_MEASURE}")
        for value in values:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BenchError(f"{key} is a whole number above 0", where=f"--vary {key}={value}")


def _backend(resolved: Resolved) -> tuple[str, str]:
    """AIConfigurator's word for what serves the recipe, and the version that it is."""
    kind = resolved.recipe.runtime.kind
    if kind is RuntimeKind.TWIN:
        what = "AIConfigurator knows trtllm and vllm, and the twin is neither"
        raise BenchError(what, where=resolved.recipe.name, hint=f"--runtime engine, llmapi or vllm; or measure: {_MEASURE}")
    runtime, toolchain = resolved.recipe.runtime, resolved.facts.toolchain
    if kind is RuntimeKind.VLLM:
        return "vllm", toolchain.vllm if runtime.contained else (chosen(runtime.packages) or GPU).rpartition("==")[2]
    return "trtllm", toolchain.trtllm


def _config(resolved: Resolved) -> dict[str, Any]:
    """The model's config.json, with what the recipe quantizes it to."""
    recipe, checkpoint = resolved.recipe, resolved.facts.checkpoint
    for said, what in (
        (recipe.variant, "guesses ahead"),
        (recipe.lora, "adapters"),
        (recipe.build.max_beam_width > 1, "beams"),
    ):
        if said:
            raise BenchError(f"AIConfigurator is not asked about {what}", where=recipe.name, hint=_MEASURE)
    if not any(each in known.architectures() for each in checkpoint.architectures):
        is_one = ", ".join(checkpoint.architectures) or "a checkpoint without a config.json"
        gemma = " (of Gemma only the fourth)" if "Gemma" in is_one else ""
        hint = f"it has {', '.join(known.architectures())}{gemma}; {_MEASURE}"
        raise BenchError(f"AIConfigurator {known.version()} has no data of {is_one}", where=recipe.name, hint=hint)
    way = _quantization(recipe)
    if way not in _QUANTIZED:
        what = f"what AIConfigurator would take for {way} is not known to forge"
        raise BenchError(what, where=recipe.name, hint=f"it is asked about none and fp8; {_MEASURE}")
    config = dict(checkpoint.config)
    if quantized := _QUANTIZED[way]:
        config["quantization_config"] = dict(quantized)
    return config


def _quantization(recipe: Recipe) -> str:
    """What is made of the weights, and of the cache, on the way."""
    if recipe.convert.quantization != "none" or recipe.runtime.kind is not RuntimeKind.VLLM:
        return recipe.convert.quantization
    stated = recipe.serve.vllm
    cache = str(stated.get("kv_cache_dtype", "auto"))
    return str(stated.get("quantization", "none")) if cache == "auto" else f"kv_cache_dtype {cache}"


def _fraction(recipe: Recipe) -> float | None:
    if recipe.runtime.kind is not RuntimeKind.VLLM:
        return recipe.serve.kv_cache_free_gpu_mem_fraction
    stated = recipe.serve.vllm.get("gpu_memory_utilization")
    return float(stated) if isinstance(stated, int | float) else None


def _most(goal: Goal, time: str) -> float:
    """Milliseconds that a time may be at most."""
    limits = [each.value for each in goal.limits if each.figure.partition("_")[0] == time and each.sign.startswith("<")]
    return min([*(value * 1000 for value in limits), FAR])


def _whole(axes: Axes, recipe: Recipe, at: int) -> tuple[int, ...]:
    stated = (recipe.convert.tp, recipe.convert.pp)[at]
    return tuple(value for value in axes.get(KEYS[at], (stated,)) if isinstance(value, int))
