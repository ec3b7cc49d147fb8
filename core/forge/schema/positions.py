"""How long a text a checkpoint was trained for, by its config.json, and what each runtime makes of a longer one. Pure.

Sources: ``_get_and_verify_max_len`` of vLLM 0.32 and of older ones, which count yarn otherwise: what is longer counts (a
ValueError, unless VLLM_ALLOW_LONG_MAX_MODEL_LEN is set); TensorRT-LLM's ``_init_max_seq_len`` of trtllm-build (it warns) and of
the PyTorch path (it warns, and lowers it).
"""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import cast

from msgspec import Struct

from forge.schema.config_json import longest
from forge.schema.recipe import RuntimeKind

_SCALED = ("su", "longrope", "llama3")
"""Kinds of rope whose max_position_embeddings counts the scaling already."""
_TABLES = ("gpt2", "gpt_bigcode", "gpt_neo", "openai-gpt", "opt", "biogpt", "bart", "mbart")
"""``model_type`` of models that learn a row for each position: beyond the last there is nothing to read."""
BEYOND = {
    RuntimeKind.ENGINE: "TensorRT-LLM warns and builds the engine, and answers make no sense from there on",
    RuntimeKind.LLMAPI: "LLM() warns, and lowers it when it starts",
    RuntimeKind.TWIN: "the twin goes on, and answers make no sense from there on",
    RuntimeKind.VLLM: "vLLM refuses it when it starts",
}


class Trained(Struct, frozen=True):
    """``tokens`` of the longest text, and the keys of config.json that say so. ``table``: each position has learned weights."""

    tokens: int
    by: str
    table: bool

    def told(self, asked: int) -> str:
        """What is wrong with a longer one, as the end of a sentence about it."""
        if self.table:
            return f"is {asked}, and the checkpoint has {self.tokens} positions, each learned ({self.by})"
        return f"is {asked}, and the checkpoint was trained for {self.tokens} tokens ({self.by})"


def beyond(config: Mapping[str, object], asked: int) -> Trained | None:
    """How long a text a checkpoint was trained for, where ``asked`` tokens are more for sure.

    ``config`` is its config.json, or the ``pretrained_config`` of an engine.
    """
    text = {**config, **_table(config.get("text_config"))}
    if "relative_attention_num_buckets" in text or text.get("position_embedding_type") == "relative":
        return None  # T5: no position has a number
    name, tokens = longest({key: value for key, value in text.items() if key != "n_ctx"})
    ropes = () if "gemma3" in str(text.get("model_type")) else tuple(_ropes(text))
    factor = max((_number(each, "factor") for each in ropes if _kind(each) not in ("yarn", *_SCALED)), default=0)
    by = f"{name} {tokens}, rope scaled by {factor:g}" if factor > 1 else name
    before = "original_max_position_embeddings"
    yarn = [int(_number(each, "factor") * _number(each, before)) for each in ropes if _kind(each) == "yarn"]
    most = max(int(max(tokens, _number(text, "model_max_length")) * max(factor, 1)), *yarn, 0)
    table = text.get("model_type") in _TABLES or text.get("position_embedding_type") == "learned_absolute"
    return Trained(most, by, table) if name and asked > most else None


def _ropes(text: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """What is said of rope: one table, or one for each kind of layer (transformers 5)."""
    for key in ("rope_parameters", "rope_scaling", "rotary_scaling"):
        said = _table(text.get(key))
        yield from (said, *(_table(each) for each in said.values()))


def _kind(rope: Mapping[str, object]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "")


def _table(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def _number(said: Mapping[str, object], key: str) -> float:
    value = said.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return float(value)
    return 0.0
