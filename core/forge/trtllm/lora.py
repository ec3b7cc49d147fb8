"""LoRA in TensorRT-LLM: its numbers for the modules that an adapter changes, their sizes, and what its cache needs. Pure.

Sources: tensorrt_llm/lora_manager.py (the numbers, and that queries, keys and values are enabled together),
cpp/tensorrt_llm/runtime/loraModule.cpp (the sizes), cpp/tensorrt_llm/batch_manager/peftCacheManager.cpp (the cache).
"""

from collections.abc import Collection, Mapping
from typing import Protocol

MODULES: Mapping[str, int] = {
    name: number
    for number, name in enumerate(
        (
            *("attn_qkv", "attn_q", "attn_k", "attn_v", "attn_dense", "mlp_h_to_4h", "mlp_4h_to_h", "mlp_gate"),
            *("cross_attn_qkv", "cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_dense"),
            *("moe_h_to_4h", "moe_4h_to_h", "moe_gate", "moe_router", "mlp_router", "mlp_gate_up"),
        )
    )
}
"""TensorRT-LLM's name of a module -> its number in lora_config."""
LORA_ATTENTION: Mapping[str, str] = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_dense"}
LORA_MODULES: Mapping[str, str] = {
    **LORA_ATTENTION,
    "gate_proj": "mlp_h_to_4h",
    "down_proj": "mlp_4h_to_h",
    "up_proj": "mlp_gate",
}
"""The checkpoint's name of a module -> TensorRT-LLM's, in Llama and what is built like it (its default mapping)."""
PYTORCH: Mapping[str, str] = {**LORA_MODULES, "gate_up_proj": "mlp_gate_up"}
"""The same for LLM() of the PyTorch path, whatever the family (get_default_trtllm_modules_to_hf_modules); experts left out."""
DTYPE = "float16"
"""What adapters are in: NVIDIA's models take ``lora_weights`` as TYPE_FP16, and the engine those of its own type alone."""
_TOGETHER = ("attn_q", "attn_k", "attn_v")


class Sizes(Protocol):
    """A decoder's sizes, in elements."""

    @property
    def layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def intermediate(self) -> int: ...


def enabled(modules: Collection[str]) -> tuple[str, ...]:
    """What ``--lora_target_modules`` has to name for adapters over ``modules``, in the order of their numbers."""
    more = _TOGETHER if not set(_TOGETHER).isdisjoint(modules) else ()
    return tuple(sorted({*modules, *more}, key=MODULES.__getitem__))


def sizes(shape: Sizes) -> Mapping[str, tuple[int, int]]:
    """Inputs and outputs of each module as the runtime counts them: of attn_dense both are the hidden size."""
    queries, values = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, wide = shape.hidden, shape.intermediate
    return {
        "attn_qkv": (hidden, queries + 2 * values),
        "attn_q": (hidden, queries),
        "attn_k": (hidden, values),
        "attn_v": (hidden, values),
        "attn_dense": (hidden, hidden),
        "mlp_h_to_4h": (hidden, wide),
        "mlp_4h_to_h": (wide, hidden),
        "mlp_gate": (hidden, wide),
        "mlp_gate_up": (hidden, 2 * wide),
    }


def page(modules: Collection[str], shape: Sizes, rank: int) -> int:
    """Bytes of a page of the cache that holds one adapter of ``rank`` over ``modules`` in float16, whatever its own rank is:
    slots are as wide as the narrowest module, and a page has as many as the optimal adapter size (here ``rank``) wants."""
    known = sizes(shape)
    widths = [sum(known[name]) for name in modules if name in known]
    if not widths:
        return 0
    slots = sum(rank * -(-width // min(widths)) for width in widths)
    return 2 * slots * min(widths) * shape.layers
