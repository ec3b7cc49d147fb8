"""LoRA adapters of an "engine": refused as the original refuses them, kept as its cache keeps them, and added for real.

Facts of lora_manager.py, loraUtils.cpp, loraModule.cpp, loraCache.cpp and peftCacheManager.cpp. Where an engine was built
without lora_plugin the original does nothing with an adapter; the stand-in refuses it: no test may take it for that.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tensorrt_llm._standin.executor import RefusedError

IDS = {
    **{name: at for at, name in enumerate(("attn_qkv", "attn_q", "attn_k", "attn_v", "attn_dense"))},
    "mlp_h_to_4h": 5,
    "mlp_4h_to_h": 6,
    "mlp_gate": 7,
}
DEFAULT: Mapping[str, str] = {
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_dense": "o_proj",
    "mlp_h_to_4h": "gate_proj",
    "mlp_4h_to_h": "down_proj",
    "mlp_gate": "up_proj",
}
"""TensorRT-LLM's name of a module -> that of Llama's checkpoints; the stand-in adds adapters to no other kind."""
_FOLDER = {"attn": "self_attn", "mlp": "mlp"}
_DTYPES = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}
_GIB = 1 << 30
Document = Mapping[str, object]
Held = TypeVar("Held")
Array = NDArray[np.generic]
Deltas = Mapping[str, NDArray[np.float32]]


def targets(stated: list[str]) -> list[str]:
    """What ``use_lora`` makes of --lora_target_modules: queries, keys and values are enabled together."""
    if not stated:
        raise ValueError(
            "lora_target_modules is empty. Please specify lora_target_modules or provide lora_dir to infer lora_target_modules."
        )
    together = ("attn_q", "attn_k", "attn_v")
    return [*stated, *(each for each in together if each not in stated and not set(together).isdisjoint(stated))]


@dataclass(frozen=True)
class Terms:
    """What an engine was built with for adapters, and the cache that its config asks for; sizes in elements and bytes."""

    modules: Mapping[int, tuple[str, int, int]]
    """Number of an enabled module -> its name, inputs and outputs."""
    layers: int
    rank: int
    dtype: str
    optimal: int
    host: int
    plugin: bool

    @property
    def narrowest(self) -> int:
        return min(inputs + outputs for _, inputs, outputs in self.modules.values())

    @property
    def page(self) -> int:
        """Elements of a page."""
        widths = [inputs + outputs for _, inputs, outputs in self.modules.values()]
        return sum(self.optimal * -(-width // self.narrowest) for width in widths) * self.narrowest * self.layers

    @property
    def pages(self) -> int:
        return max(self.host // 2 // self.page, 1)


def read(model: Document, build: Document, stated: Mapping[str, str]) -> Terms:
    """The terms of an engine; RefusedError where its cache could not hold one adapter of the largest rank."""
    plugins = cast("Document", build.get("plugin_config") or {})
    lora = cast("Document", build.get("lora_config") or {})
    number = {name: cast("int", model[name]) for name in ("hidden_size", "intermediate_size", "head_size", "num_hidden_layers")}
    heads, kv_heads = (cast("int", model[f"num_{kind}_heads"]) for kind in ("attention", "key_value"))
    hidden, wide, queries, values = (
        *(number["hidden_size"], number["intermediate_size"]),
        *(heads * number["head_size"], kv_heads * number["head_size"]),
    )
    sizes = {
        "attn_qkv": (hidden, queries + 2 * values),
        "attn_q": (hidden, queries),
        "attn_k": (hidden, values),
        "attn_v": (hidden, values),
        "attn_dense": (hidden, hidden),
        "mlp_h_to_4h": (hidden, wide),
        "mlp_4h_to_h": (wide, hidden),
        "mlp_gate": (hidden, wide),
    }
    enabled = cast("list[str]", lora.get("lora_target_modules") or [])
    rank = cast("int", lora.get("max_lora_rank") or 64)
    terms = Terms(
        {IDS[name]: (name, *sizes[name]) for name in enabled if name in sizes},
        number["num_hidden_layers"],
        rank,
        str(model["dtype"]),
        min(int(stated.get("lora_cache_optimal_adapter_size") or 8), rank),
        int(stated.get("lora_cache_host_memory_bytes") or _GIB),
        bool(plugins.get("lora_plugin")),
    )
    if terms.plugin:
        most = min(int(stated.get("lora_cache_max_adapter_size") or 64), rank)
        slots = -(-most * terms.layers * sum(i + o for _, i, o in terms.modules.values()) // terms.narrowest)
        if terms.host // (2 * terms.narrowest) < slots:
            what = f"Not enough space allocated to host LoRA cache to hold 1 max sized LoRA {terms.host} < {slots}"
            raise RefusedError(f"[TensorRT-LLM][ERROR] Assertion failed: {what}")
    return terms


class Cache(Generic[Held]):
    """Adapters by task id; the one that was used longest ago goes where a further one has no room."""

    def __init__(self, terms: Terms, make: Callable[[Deltas], Held], drop: Callable[[Held], None]) -> None:
        self._terms, self._make, self._drop = terms, make, drop
        self._held: OrderedDict[int, Held] = OrderedDict()

    def prefetch(self, folder: Path, warn: Callable[[str], None]) -> None:
        """Take in the adapters of ``lora_prefetch_dir``, each in a folder called as its task id."""
        for each in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not each.name.isdigit():
                warn(f"lora task name {each.name} is invalid, skipping to load lora weight from this folder.")
                continue
            self.take(int(each.name), np.load(each / "model.lora_weights.npy"), np.load(each / "model.lora_config.npy"))

    def take(self, task: int, weights: Array | None, config: Array | None) -> Held:
        """The adapter of a request, which it brings or which is there."""
        if not self._terms.plugin:
            raise RefusedError("LoRA is asked for, and the engine was built without lora_plugin")
        if weights is not None or config is not None:
            check(self._terms, weights, config)
        elif task not in self._held:
            raise RefusedError(f"LoRA task {task} not found in cache. Please send LoRA weights with request")
        if task not in self._held and weights is not None and config is not None:
            while len(self._held) >= self._terms.pages:
                self._drop(self._held.popitem(last=False)[1])
            self._held[task] = self._make(deltas(self._terms, weights, config))
        self._held.move_to_end(task)
        return self._held[task]

    @property
    def held(self) -> tuple[Held, ...]:
        return tuple(self._held.values())

    def close(self) -> None:
        for each in self._held.values():
            self._drop(each)


def check(terms: Terms, weights: Array | None, config: Array | None) -> None:
    """RefusedError for arrays that are no adapter of this engine."""
    if weights is None or config is None:
        raise RefusedError("Request for LoRA inference must have both lora_weights and lora_keys")
    _require(weights.ndim == 3, "Invalid shape for lora_weights tensor")
    _require(config.ndim == 3, "Invalid shape for lora_keys tensor")
    _require(len(weights) == len(config) == 1, "Expected batch dimension to be 1 for each lora request")
    _require(config.dtype == np.int32, f"Expected  lora keys to have TYPE_INT32 but was {config.dtype}")
    _require(config.shape[1] == weights.shape[1], "Expected dim1 lora_weights and lora_keys to have the same size")
    _require(config.shape[2] in (3, 4), "Expected dim2 of lora_keys to have a size in [3, 4]")
    same = weights.dtype == _DTYPES.get(terms.dtype)
    _require(same, "Expected lora weights to be the same data type as base model")
    for module, layer, rank in config[0, :, :3].tolist():
        _require(0 <= layer < terms.layers, "Expected layerId to be in the range [0, numModelLayers)")
        _require(rank > 0, "Expected adapterSize to be > 0")
        _require(module in terms.modules, f"lora module {module} not enabled for this model")
        name, inputs, outputs = terms.modules[module]
        _require(rank * (inputs + outputs) <= weights.shape[2], f"lora_weights has to few values for {name}")
        most = f"Invalid low_rank ({rank}). low_rank must be smaller than mMaxLowRank ({terms.rank})"
        _require(rank <= terms.rank, most)


def deltas(terms: Terms, weights: Array, config: Array) -> Deltas:
    """What an adapter adds to the checkpoint's tensors, by their names without what stands before the layers."""
    found: dict[str, NDArray[np.float32]] = {}
    for row, (module, layer, rank) in zip(weights[0].astype(np.float32), config[0, :, :3].tolist(), strict=True):
        name, inputs, outputs = terms.modules[module]
        if name not in DEFAULT:
            raise RefusedError(f"the stand-in adds nothing to {name}")
        a = row[: rank * inputs].reshape(rank, inputs)
        b = row[rank * inputs : rank * (inputs + outputs)].reshape(outputs, rank)
        found[f"layers.{layer}.{_FOLDER[name.partition('_')[0]]}.{DEFAULT[name]}.weight"] = b @ a
    return found


def _require(true: bool, what: str) -> None:
    if not true:
        raise RefusedError(f"[TensorRT-LLM][ERROR] Assertion failed: {what}")
