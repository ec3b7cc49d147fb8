"""How far an engine may be from the checkpoint, by what it computes in. Pure.

Greedy decoding is a chain: where two tokens are almost equally likely, rounding decides, and every token after it is another
one. So tokens alone do not tell rounding from a fault. What does is how far apart the checkpoint itself holds the two tokens at
the first difference: a kernel that rounds to 8 bits of mantissa moves a logit of about 20 by some hundredths, never by 2.
"""

import re
from collections.abc import Mapping
from functools import cache

from msgspec import Struct
from msgspec.structs import replace

from forge.files import texts


class Tolerance(Struct, frozen=True):
    """``tie``: nats by which the checkpoint may prefer its own token where the engine takes another. ``drift``: nats by which
    log-probabilities of tokens that both say may differ, on the average of an answer. ``diverging``: the part of the prompts
    that may differ by more than a tie all the same. ``why`` is the reason in a sentence."""

    name: str
    tie: float
    drift: float
    diverging: float
    why: str


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    """tolerances.toml."""

    dtypes: dict[str, Tolerance]
    quantizations: dict[str, Tolerance]
    algorithms: dict[str, str]


@cache
def table() -> _Table:
    """What each type and each quantization allows."""
    return texts.shipped("forge.verify", "tolerances.toml", _Table)


KV_CACHE = 0.25
"""Nats more for a key-value cache of 8 bits, whose error grows with the length of the prompt."""
_DTYPES = {"half": "float16", "float": "float32"}
"""vLLM's other names of types."""
_8_BITS = re.compile(r"fp8|int8")


def twin_tolerance(weights: str) -> Tolerance:
    """What the twin allows, which computes in float32, on weights rounded as ``runtime.weights`` says (or not at all)."""
    return table().quantizations["int8 weights"] if weights == "int8" else table().dtypes[weights or "float32"]


def tolerance(config: Mapping[str, object]) -> Tolerance:
    """What the config.json of an engine, or of a checkpoint, allows."""
    stated = _table(config.get("pretrained_config")) or config
    dtype = str(stated.get("dtype") or stated.get("torch_dtype") or "bfloat16")
    found = table().dtypes.get(dtype, table().dtypes["bfloat16"])
    quantization = _table(stated.get("quantization") or stated.get("quantization_config"))
    algorithm = str(quantization.get("quant_algo") or quantization.get("quant_method") or "").upper()
    if algorithm.startswith("W8A8"):
        found = table().quantizations["int8 activations"]
    elif algorithm:
        found = table().quantizations[table().algorithms.get(algorithm, "int4 weights")]
    return _cached(found) if quantization.get("kv_cache_quant_algo") else found


def vllm_tolerance(config: Mapping[str, object], arguments: Mapping[str, object]) -> Tolerance:
    """What vLLM's ``arguments`` (model.json) allow on a checkpoint's config.json.

    ``dtype`` auto is the checkpoint's own, but never float32: vLLM takes the platform's first type of 16 bits there, which
    is bfloat16 nearly everywhere and the wider of the two (ModelConfig's ``_resolve_auto_dtype``).
    """
    own = config.get("dtype") or config.get("torch_dtype") or "float32"
    wanted = str(arguments.get("dtype") or "auto")
    dtype = ("bfloat16" if own == "float32" else own) if wanted == "auto" else _DTYPES.get(wanted, wanted)
    stated = {**config, "dtype": dtype}
    if method := arguments.get("quantization"):
        stated.setdefault("quantization_config", {"quant_method": method})
    found = tolerance(stated)
    return _cached(found) if _8_BITS.match(str(arguments.get("kv_cache_dtype", ""))) else found


def _cached(found: Tolerance) -> Tolerance:
    """With a key-value cache of 8 bits."""
    return replace(found, name=f"{found.name}, 8-bit kv cache", tie=found.tie + KV_CACHE, diverging=max(found.diverging, 0.1))


def _table(stated: object) -> Mapping[str, object]:
    return stated if isinstance(stated, Mapping) else {}  # pyright: ignore[reportUnknownVariableType]
