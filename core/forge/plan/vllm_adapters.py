"""LoRA adapters on vLLM: what of them it has nothing for, and its arguments for them. Pure.

Source: vLLM's lora/peft_helper.py and config/lora.py.
"""

from collections.abc import Iterator
from typing import cast

from forge.errors import Problem
from forge.plan.adapters import MERGE
from forge.plan.resolved import Resolved
from forge.schema import tags
from forge.schema.adapters import Adapter
from forge.schema.vllm_clashes import RANKS

_MAX_RANK = "max_lora_rank"
_NOT_LORA = ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")
_SCALED = (0, 32)
"""From which vLLM on a module may have a rank or an alpha of its own: up to 0.31 each is scaled by lora_alpha / r."""


def check(resolved: Resolved, version: str, *, gpu: bool) -> Iterator[Problem]:
    """What of the recipe's adapters its vLLM, of this ``version``, does not take."""
    most = resolved.recipe.serve.vllm.get(_MAX_RANK)
    for adapter in resolved.adapters:
        where = f"lora.{adapter.name}"
        yield from (Problem(where, what, MERGE) for what in _untaken(adapter, version))
        if isinstance(most, int) and RANKS[-1] >= adapter.rank > most:
            what = f"is {most}, and the rank of {adapter.name} is {adapter.rank}"
            yield Problem(f"serve.vllm.{_MAX_RANK}", what, "take it away: forge sets the least that all adapters need")
    slots, wanted = resolved.recipe.serve.vllm.get("max_loras"), _slots(resolved, gpu=gpu)
    if resolved.adapters and not gpu and isinstance(slots, int) and slots < wanted:
        what = f"is {slots}: on a CPU requests without an adapter would get the one in the last place"
        yield Problem("serve.vllm.max_loras", what, f"take it away, or say {wanted} or more")


def _untaken(adapter: Adapter, version: str) -> Iterator[str]:
    if kinds := [kind for kind in _NOT_LORA if adapter.config.get(kind)]:
        yield f"its adapter_config.json has {' and '.join(kinds)}, which vLLM does not take"
    if others := {*_words(adapter.config.get("modules_to_save"))} - {"classifier", "score"}:
        yield f"it replaces {', '.join(sorted(others))} whole (modules_to_save), and vLLM does not"
    if adapter.rank > RANKS[-1]:
        yield f"its rank is {adapter.rank}, and {RANKS[-1]} is the largest that vLLM has"
    patterns = (("alpha_pattern", "lora_alpha"), ("rank_pattern", "r"))
    own = [f"{pattern} for {key:.60}" for pattern, usual in patterns for key in adapter.own(pattern, usual)]
    numbers = tags.version(version)
    if own and numbers and numbers < _SCALED:
        yield f"it has {', '.join(own)}, and vLLM {version} scales every module by lora_alpha / r (0.32 does not)"


def _words(value: object) -> tuple[str, ...]:
    return tuple(map(str, cast("list[object]", value))) if isinstance(value, list) else ()


def stated(resolved: Resolved, *, gpu: bool) -> dict[str, object]:
    """vLLM's arguments for them; empty where there are none."""
    if not resolved.adapters:
        return {}
    return {"enable_lora": True, _MAX_RANK: lora_rank(resolved), "max_loras": _slots(resolved, gpu=gpu)}


def _slots(resolved: Resolved, *, gpu: bool) -> int:
    """max_loras: a place for each adapter, so that all can be in one batch. On a CPU one more, which stays empty: vLLM's
    kernels there look up the adapter of a request without one at -1, the last place (lora/ops/torch_ops, 0.32)."""
    return len(resolved.adapters) + (0 if gpu else 1)


def lora_rank(resolved: Resolved) -> int:
    """max_lora_rank: the least that vLLM has and all adapters need; 0 where there are none."""
    most = max((each.rank for each in resolved.adapters), default=0)
    return next((rank for rank in RANKS if rank >= most), RANKS[-1]) if most else 0
