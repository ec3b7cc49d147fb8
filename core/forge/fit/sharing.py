"""How several models share one GPU: each one's kv_cache_free_gpu_mem_fraction, in the order in which they are loaded.

The fraction is of what is free when a model loads, after its own weights: the first one to load must leave room for the
weights and the cache of all that follow, and the last one may take nearly all that it finds. Pure.
"""

import math
from collections.abc import Sequence

from msgspec import Struct

from forge.fit.memory import CONTEXT, Need
from forge.fit.verdict import Verdict, taken_before
from forge.schema.values import Gpu

MOST = 0.95
"""Of what is free for all caches together: inputs, outputs and libraries' handles are allocated after the caches."""
DECIMALS = 10**6


class Claim(Struct, frozen=True):
    """One model's bytes on a shared GPU: ``fixed`` (weights, activations), a cache of ``least`` bytes, ``wanted`` at best."""

    fixed: int
    least: int
    wanted: int


class Share(Struct, frozen=True):
    """What one model gets: ``cache`` bytes by ``fraction`` of what is free when it loads."""

    name: str
    fraction: float
    cache: int
    tokens: int
    sequences: int
    verdict: Verdict


def fractions(free: int, claims: Sequence[Claim], spare: int = 0) -> tuple[float, ...] | None:
    """kv_cache_free_gpu_mem_fraction of each model, in load order; None where not even the least caches fit.

    ``free`` is what a GPU has before the first of them loads. Each gets its least, and of the rest a part in proportion to
    what it still wants; nobody gets more than it wants. Rounded down, so that those who load later find their part.
    ``spare`` is free too, and nobody's: what a budget leaves over.
    """
    caches = _caches(int((free - sum(claim.fixed for claim in claims)) * MOST), claims)
    if caches is None:
        return None
    found: list[float] = []
    for claim, cache in zip(claims, caches, strict=True):
        free -= claim.fixed
        seen = free + spare
        fraction = math.floor(cache / seen * DECIMALS) / DECIMALS if seen > 0 else 0.0
        found.append(fraction)
        free -= int(seen * fraction)
    return tuple(found)


def missing(free: int, claims: Sequence[Claim], stated: Sequence[float]) -> tuple[int, ...]:
    """Bytes that each model lacks for its least cache when they load in this order with these fractions; 0 where none."""
    lacks: list[int] = []
    for claim, fraction in zip(claims, stated, strict=True):
        free -= claim.fixed
        cache = max(int(free * fraction), 0)
        lacks.append(max(claim.least - cache, 0))
        free -= cache
    return tuple(lacks)


def _caches(room: int, claims: Sequence[Claim]) -> list[int] | None:
    """Bytes of each one's cache."""
    least, wanted = sum(claim.least for claim in claims), sum(claim.wanted for claim in claims)
    if room < least:
        return None
    more = min(room, wanted) - least
    return [claim.least + more * (claim.wanted - claim.least) // max(wanted - least, 1) for claim in claims]


def claims(needs: Sequence[Need]) -> tuple[Claim, ...]:
    """What models claim of a GPU; each after the first brings a CUDA context of its own (orchestrator mode)."""
    return tuple(Claim(each.fixed.size + (CONTEXT if at else 0), each.least, each.wanted) for at, each in enumerate(needs))


def room(gpu: Gpu) -> int:
    """What a GPU has for models."""
    return gpu.available - taken_before(gpu).size


def shares(named: Sequence[tuple[str, Need]], gpu: Gpu) -> tuple[Share, ...] | None:
    """What each of these gets of a GPU, in load order; None where they do not fit together."""
    asked = claims([each for _, each in named])
    free = room(gpu)
    parts = fractions(free, asked)
    if parts is None:
        return None
    found: list[Share] = []
    for (name, each), claim, fraction in zip(named, asked, parts, strict=True):
        free -= claim.fixed
        cache = int(free * fraction)
        free -= cache
        # Rounding takes a millionth of what is free: less than a token's worth of anybody's cache.
        whole = cache + free // DECIMALS + 1 >= each.wanted
        sequences = each.slots if whole else max(cache // each.least, 1)
        verdict = Verdict.FITS if whole else Verdict.LIMITED
        found.append(Share(name, fraction, cache, each.cache.tokens(cache), sequences, verdict))
    return tuple(found)
