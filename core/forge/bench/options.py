"""What a benchmark is asked to do, and the settings that its sweep makes of it. Every mistake is found before anything runs."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct, field

from forge.bench.driver import Load
from forge.bench.figures import TIMES
from forge.bench.results import Value
from forge.errors import BenchError, meant

SAMPLING: Mapping[str, type[int] | type[float] | type[bool]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "beam_width": int,
    "n": int,
    "min_tokens": int,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "length_penalty": float,
    "early_stopping": bool,
    "beam_search_diversity_rate": float,
    "num_draft_tokens": int,
}
"""What of a request a benchmark can set, by its name in ``forge.client.types.Request``."""
LOADS: Mapping[str, type[int] | type[float] | type[bool]] = {
    "concurrency": int,
    "rate": float,
    "input_tokens": int,
    "output_tokens": int,
}
"""What of the load a sweep can vary."""
_WORDS = {**SAMPLING, **LOADS}
_SIGNED = ("presence_penalty", "frequency_penalty", "length_penalty")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s)")
_SWITCHES = {"true": True, "false": False}


class BenchOptions(Struct, frozen=True):
    """A benchmark as a person asks for it. ``None`` leaves a value to the recipe or to what is usual."""

    concurrency: int | None = None
    rate: float | None = None
    requests: int | None = None
    duration: float | None = None
    repeats: int = 3
    warmup: int | None = None
    """Requests; by default as many as are under way at once."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    dataset: Path | None = None
    chat: bool = False
    """Whether prompts of a data set are put into the chat template."""
    ignore_end: bool | None = None
    """Whether answers must reach their length; by default where the length is fixed and the model can be told so."""
    stream: bool = True
    seed: int = 1
    sampling: Mapping[str, Value] = field(default_factory=dict[str, Value])
    sweep: Mapping[str, tuple[Value, ...]] = field(default_factory=dict[str, tuple[Value, ...]])
    goodput: Mapping[str, float] = field(default_factory=dict[str, float])
    quality: Path | None = None
    driver: Literal["forge", "aiperf"] = "forge"
    """Who puts the load on: forge's own loop over gRPC, or NVIDIA's AIPerf over HTTP."""
    patience: float = 600.0
    """Seconds after which a request is given up."""
    command: tuple[str, ...] = ()
    """How it was asked for, for the results."""


class Setting(Struct, frozen=True):
    """One point of a sweep: the load and the sampling there."""

    values: Mapping[str, Value]
    load: Load
    input_tokens: int | None
    output_tokens: int | None
    sampling: Mapping[str, Value]

    @property
    def label(self) -> str:
        load = {"concurrency": self.load.concurrency} if self.load.rate is None else {"rate": self.load.rate}
        return " ".join(f"{name}={value}" for name, value in {**load, **self.values}.items())


INPUT_TOKENS, OUTPUT_TOKENS, REQUESTS = 128, 64, 32
"""What is usual where nobody says: the lengths of made prompts and their answers, and the requests of a repeat."""


def settings(options: BenchOptions) -> tuple[Setting, ...]:
    """Every combination of the sweep's values, the last named varying fastest; BenchError for what contradicts itself."""
    _refuse_contradictions(options)
    return tuple(
        _setting(options, dict(zip(options.sweep, chosen, strict=True)))
        for chosen in itertools.product(*options.sweep.values())
    )


def _setting(options: BenchOptions, values: dict[str, Value]) -> Setting:
    def pick(name: str, stated: float | None) -> float | None:
        value = values.get(name, stated)
        return None if value is None else float(value)

    rate = pick("rate", options.rate)
    concurrency = None if rate is not None else int(pick("concurrency", options.concurrency) or 1)
    made = options.dataset is None
    inputs = pick("input_tokens", options.input_tokens or (INPUT_TOKENS if made else None))
    outputs = pick("output_tokens", options.output_tokens or (OUTPUT_TOKENS if made else None))
    sampling = dict(options.sampling) | {name: value for name, value in values.items() if name in SAMPLING}
    return Setting(
        values,
        Load(concurrency, rate),
        None if inputs is None else int(inputs),
        None if outputs is None else int(outputs),
        sampling,
    )


def _refuse_contradictions(options: BenchOptions) -> None:
    named = {name for name in LOADS if name in options.sweep or getattr(options, name) is not None}
    if {"concurrency", "rate"} <= named:
        raise BenchError("concurrency and rate exclude each other", hint="a closed loop has the one, an open loop the other")
    if options.dataset is not None and "input_tokens" in named:
        raise BenchError("the prompts of a data set have lengths of their own", hint="leave out input_tokens, or the data set")
    if options.requests is not None and options.duration is not None:
        raise BenchError("a repeat is bounded by requests or by a duration, not by both")
    if twice := [name for name in options.sweep if name in options.sampling or getattr(options, name, None) is not None]:
        raise BenchError(f"set once and swept as well: {', '.join(twice)}", hint="leave out one of the two")


def swept(texts: Sequence[str]) -> dict[str, tuple[Value, ...]]:
    """``temperature=0.2,0.7`` and its like, in their order."""
    found: dict[str, tuple[Value, ...]] = {}
    for text in texts:
        name, values = _named(text, "--sweep temperature=0.2,0.7")
        if name in found:
            raise BenchError(f"{name} is swept twice", where=f"--sweep {text}", hint=f"give all values at once: {name}=A,B,C")
        parts = [part.strip() for part in values.split(",")]
        if len(set(parts)) < len(parts):
            raise BenchError("a value stands there twice", where=f"--sweep {text}")
        found[name] = tuple(_value(name, part, f"--sweep {text}") for part in parts)
    return found


def sampled(texts: Sequence[str]) -> dict[str, Value]:
    """``temperature=0.2`` and its like."""
    pairs = [(*_named(text, "--set temperature=0.2"), text) for text in texts]
    if loads := [name for name, _, _ in pairs if name in LOADS]:
        raise BenchError(f"{loads[0]} has an option of its own", hint=f"--{loads[0].replace('_', '-')}")
    return {name: _value(name, value.strip(), f"--set {text}") for name, value, text in pairs}


def limits(text: str) -> dict[str, float]:
    """``ttft=200ms,itl=50ms`` in seconds."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (each.strip() for each in part.partition("="))
        if name not in TIMES:
            raise BenchError(f"there is no {name!r} to limit", where=f"--goodput {text}", hint=f"{', '.join(TIMES)}")
        found[name] = seconds(value, f"--goodput {text}")
    return found


def seconds(text: str, where: str) -> float:
    """``200ms``, ``1.5s``; BenchError for a number without a unit."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise BenchError(f"{text!r} is no time", where=where, hint="write 200ms, 1.5s or 800us")
    return float(match[1]) * _UNITS[match[2]]


def _named(text: str, like: str) -> tuple[str, str]:
    name, mark, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not mark:
        raise BenchError(f"{text!r} names no values", hint=f"write it like {like}")
    if name not in _WORDS:
        raise BenchError(f"{name!r} cannot be set", hint=f"{meant(name, _WORDS)} there are: {', '.join(_WORDS)}".strip())
    return name, values


def _value(name: str, text: str, where: str) -> Value:
    kind = _WORDS[name]
    try:
        value = _SWITCHES[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise BenchError(f"{text!r} is no value of {name}", where=where, hint=f"a {kind.__name__} is wanted") from error
    least = -math.inf if name in _SIGNED else 1 if name in LOADS and name != "rate" else 0
    if not math.isfinite(value) or value < least or (name == "rate" and value == 0):
        raise BenchError(f"{name} cannot be {text}", where=where)
    return value
