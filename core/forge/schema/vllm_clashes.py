"""Arguments of vLLM that it refuses together, or with the checkpoint: said by a plan, and by ``forge check``. Pure.

Source: what vLLM 0.20 and 0.32 both refuse before they load anything (their engine/arg_utils.py and config/). A test asks the
real one for each (tests' test_vllm_real_clashes.py).
"""

from collections.abc import Iterator, Mapping
from typing import cast

from msgspec import Struct

from forge.schema import tags

Arguments = Mapping[str, object]
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What max_lora_rank may be (config/lora.py); 1 is new."""
USUAL_TOKENS = 2048
"""max_num_batched_tokens of an engine that is no server of OpenAI's API, where nobody says another (engine/arg_utils.py)."""
_SINCE = (0, 20)
_IN_STEP = ("medusa", "mlp_speculator", "ngram", "suffix")
"""Methods of guessing that async scheduling does not go with."""
_TWICE = (
    ("attention_backend", "attention_config", "backend"),
    ("cudagraph_capture_sizes", "compilation_config", "cudagraph_capture_sizes"),
    ("max_cudagraph_capture_size", "compilation_config", "max_cudagraph_capture_size"),
)


class Clash(Struct, frozen=True):
    """One refusal: the rule of ``forge check`` that it breaks, the arguments that it is about, and why."""

    rule: str
    names: tuple[str, ...]
    what: str


def clashes(stated: Arguments, config: Arguments, version: str = "", *, usual_tokens: int = 0) -> Iterator[Clash]:
    """All of one model. ``config`` is its config.json, empty where nobody knows; ``usual_tokens`` is max_num_batched_tokens
    where nobody says it, 0 for unknown. Of a ``version`` before 0.20 only what every vLLM refuses."""
    numbers = tags.version(version)
    newer = not numbers or numbers >= _SINCE
    yield from _values(stated)
    yield from _batch(stated, usual_tokens, newer=newer)
    if not {"hf_overrides", "hf_config_path"}.intersection(stated):
        yield from _heads(stated, config)
    if newer:
        yield from (*_speculation(stated), *_parallel(stated), *_twice(stated))


def _values(stated: Arguments) -> Iterator[Clash]:
    part = stated.get("gpu_memory_utilization")
    if isinstance(part, int | float) and not isinstance(part, bool) and not 0 < part <= 1:
        yield Clash("vllm-value", ("gpu_memory_utilization",), f"is {part:g}: it is a part of the card, above 0 and up to 1")
    if not _enables(stated):
        return
    rank, slots, held = (_whole(stated, name) for name in ("max_lora_rank", "max_loras", "max_cpu_loras"))
    if rank is not None and rank not in (1, *RANKS):
        yield Clash("vllm-value", ("max_lora_rank",), f"is {rank}: vLLM takes {', '.join(map(str, RANKS))}")
    if held and held < (slots or 1):
        yield Clash("vllm-value", ("max_cpu_loras", "max_loras"), f"is {held}, below max_loras ({slots or 1})")


def _batch(stated: Arguments, usual: int, *, newer: bool) -> Iterator[Clash]:
    name = "max_num_batched_tokens"
    tokens, slots, length = (_whole(stated, each) for each in (name, "max_num_seqs", "max_model_len"))
    told = f"is {tokens}"
    chunked = stated.get("enable_chunked_prefill") is not False
    if tokens is None and usual and not {"performance_mode", "data_parallel_size"}.intersection(stated):
        tokens = min((slots or usual) * (length or usual), usual if chunked else max(usual, length or 0))
        told = f"is {tokens} where nobody says it"
    if tokens is None:
        return
    if slots is not None and tokens < slots:
        yield Clash("vllm-batch", (name, "max_num_seqs"), f"{told}, below max_num_seqs ({slots}): each takes one in a pass")
    if newer and not chunked and length is not None and tokens < length:
        what = f"{told}, below max_model_len ({length}), and without chunked prefill a pass has to hold a whole prompt"
        yield Clash("vllm-batch", (name, "max_model_len", "enable_chunked_prefill"), what)
    guesses = _whole(_table(stated.get("speculative_config")), "num_speculative_tokens")
    if newer and _enables(stated) and slots and guesses and slots <= tokens < slots * (guesses + 1):
        what = f"{told}: with adapters and {guesses} guesses for each of {slots} requests it has to be {slots * (guesses + 1)}"
        yield Clash("vllm-batch", (name, "max_num_seqs", "speculative_config"), what)


def _heads(stated: Arguments, config: Arguments) -> Iterator[Clash]:
    heads = _whole({**config, **_table(config.get("text_config"))}, "num_attention_heads")
    ranks = _whole(stated, "tensor_parallel_size")
    if ranks and heads and heads % ranks:
        what = f"is {ranks}, and the {heads} attention heads of the checkpoint cannot be shared out among so many"
        yield Clash("vllm-parallel", ("tensor_parallel_size",), what)


def _speculation(stated: Arguments) -> Iterator[Clash]:
    said, where = _table(stated.get("speculative_config")), ("speculative_config",)
    guesses, method = said.get("num_speculative_tokens"), str(said.get("method") or "")
    if method == "ngram" and guesses is None:  # a draft may state its own (n_predict of its config.json)
        yield Clash("vllm-speculation", where, "has no num_speculative_tokens")
    if isinstance(guesses, int) and guesses < 1:
        yield Clash("vllm-speculation", where, f"guesses {guesses} tokens: num_speculative_tokens has to be 1 or more")
    least, most = (_whole(said, f"prompt_lookup_{end}") for end in ("min", "max"))
    if method == "ngram" and least is not None and most is not None and least > most:
        yield Clash("vllm-speculation", where, f"has prompt_lookup_min {least} above prompt_lookup_max {most}")
    if said.get("tensor_parallel_size") is not None:
        yield Clash("vllm-speculation", where, "has tensor_parallel_size: there it is draft_tensor_parallel_size")
    if stated.get("async_scheduling") is True and method in _IN_STEP:
        yield Clash("vllm-speculation", ("async_scheduling", *where), f"is true, and with {method} vLLM guesses without it")


def _parallel(stated: Arguments) -> Iterator[Clash]:
    stages, ranks = _whole(stated, "pipeline_parallel_size") or 1, _whole(stated, "tensor_parallel_size") or 1
    backend = stated.get("distributed_executor_backend")
    if stages > 1 and backend == "uni":
        what = f"is {stages}, and distributed_executor_backend {backend!r} is one process"
        yield Clash("vllm-parallel", ("pipeline_parallel_size", "distributed_executor_backend"), what)
    context = _whole(stated, "decode_context_parallel_size") or 1
    if ranks % context and stated.get("prefill_context_parallel_size") in (None, 1):
        what = f"is {context}, which does not divide tensor_parallel_size ({ranks})"
        yield Clash("vllm-parallel", ("decode_context_parallel_size", "tensor_parallel_size"), what)
    if stated.get("enable_eplb") is True and stated.get("enable_expert_parallel") is not True:
        yield Clash("vllm-parallel", ("enable_eplb", "enable_expert_parallel"), "is true, and enable_expert_parallel is not")


def _twice(stated: Arguments) -> Iterator[Clash]:
    for name, table, key in _TWICE:
        other = _table(stated.get(table)).get(key)
        if stated.get(name) is not None and other is not None and str(other).lower() != "auto":
            yield Clash("vllm-twice", (name, table), f"{table} says {key} too, and vLLM takes one of them")


def _enables(stated: Arguments) -> bool:
    return str(stated.get("enable_lora", "")).lower() == "true"


def _table(value: object) -> Arguments:
    return cast("Arguments", value) if isinstance(value, dict) else {}


def _whole(stated: Arguments, name: str) -> int | None:
    found = stated.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) else None
