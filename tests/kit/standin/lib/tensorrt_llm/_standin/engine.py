"""An "engine" as it is opened: whole, of this release, for as many ranks as there are, and built for what is asked of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import cast

from tensorrt_llm._standin.building import MODES
from tensorrt_llm._standin.checkpoint import ORIGIN
from tensorrt_llm._standin.executor import Place, RefusedError, Terms, require_ranks
from tensorrt_llm._standin.sources import load_json
from tensorrt_llm._standin.tensors import CheckpointError, read as read_tensors
from tensorrt_llm.version import __version__

_BUILT = {"medusa": "medusa", "lookahead": "lookahead_decoding", "redrafter": "explicit_draft_tokens", "eagle": "eagle"}
"""decoding_mode -> --speculative_decoding_mode."""
Document = Mapping[str, object]


@dataclass(frozen=True)
class Engine:
    """A folder that trtllm-build has written."""

    folder: Path
    model: Document
    build: Document

    @property
    def ranks(self) -> int:
        """How many processes it was built for."""
        mapping = cast("dict[str, int]", self.model["mapping"])
        return prod(mapping.get(name, 1) for name in ("tp_size", "pp_size", "cp_size"))

    @property
    def rank0(self) -> Path:
        return (self.folder / "rank0.engine").resolve()

    @property
    def origin(self) -> dict[str, object]:
        """The config.json of the checkpoint that it was made of."""
        return cast("dict[str, object]", json.loads(read_tensors(self.rank0).metadata[ORIGIN]))

    def limit(self, name: str) -> int:
        return cast("int", self.build[name])

    def plugin(self, name: str) -> object:
        return cast("Document", self.build["plugin_config"]).get(name)


def load(folder: Path) -> Engine:
    """The engine in ``folder``: all its ranks, and of this release."""
    document = load_json(folder / "config.json")
    if document.get("version") != __version__:
        raise RefusedError(
            f"Serialization assertion failed: the engine is of TensorRT-LLM {document.get('version')}, this is "
            f"{__version__}. Version tag does not match."
        )
    made = Engine(folder, cast("Document", document["pretrained_config"]), cast("Document", document["build_config"]))
    for rank in range(made.ranks):
        if not (folder / f"rank{rank}.engine").exists():
            raise CheckpointError(f"Error opening engine file: {folder}/rank{rank}.engine")
    return made


def opened(asked: Terms, place: Place) -> tuple[Engine, Engine | None]:
    """The engine and its encoder; RefusedError or CheckpointError where they cannot be served as is asked."""
    if asked.engine is None:
        raise RefusedError("this stand-in serves no encoder alone")
    document = load_json(asked.engine / "config.json")
    model = cast("Document", document.get("pretrained_config") or {})
    mapping = cast("dict[str, int]", model.get("mapping") or {})
    if asked.encoder is not None and mapping.get("pp_size", 1) != 1:
        raise RefusedError("Encoder-Decoder C++ runtime doesn't support Pipeline Parallelism currently.")
    require_ranks(asked, place, prod(mapping.get(name, 1) for name in ("tp_size", "pp_size", "cp_size")))
    encoder = load(asked.encoder) if asked.encoder is not None else None
    engine = load(asked.engine)
    for what in _unfit(asked, engine):
        raise RefusedError(f"[TensorRT-LLM][ERROR] Assertion failed: {what}")
    return engine, encoder


def lay(engine: Engine, encoder: Engine | None, into: Path) -> None:
    """The checkpoint that engines were made of, as the twin reads it: their limits, and both halves where there are two."""
    limits = {"max_input_len": (encoder or engine).limit("max_input_len"), "max_seq_len": engine.limit("max_seq_len")}
    (into / "config.json").write_text(json.dumps(engine.origin), encoding="utf-8")
    (into / "build_config.json").write_text(json.dumps(limits), encoding="utf-8")
    if encoder is None:
        (into / "model.safetensors").symlink_to(engine.rank0)
        return
    placed: dict[str, str] = {}
    for name, half in (("encoder", encoder), ("decoder", engine)):
        file = f"model-{name}.safetensors"
        (into / file).symlink_to(half.rank0)
        placed |= dict.fromkeys(read_tensors(half.rank0).tensors, file)
    index = {"metadata": {}, "weight_map": placed}
    (into / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _unfit(asked: Terms, engine: Engine) -> list[str]:
    """What the engine was not built for, in the order in which the runtime looks."""
    found: list[str] = []
    plugins = (engine.plugin("gpt_attention_plugin"), engine.plugin("remove_input_padding"))
    if asked.batching == "inflight" and (not all(plugins) or engine.build["kv_cache_type"] != "PAGED"):
        found.append("TrtGptModelInflightBatching requires GPT attention plugin with packed input and paged KV cache.")
    if asked.beams > engine.limit("max_beam_width"):
        most = engine.limit("max_beam_width")
        found.append(f"Runtime configured max beam width ({asked.beams}) must not exceed engine max beam width ({most})")
    if asked.encoder is None and asked.cross is not None:
        found.append("Do not set crossKvCacheFraction for decoder-only model")
    if asked.encoder is not None and asked.cross is None:
        found.append("Must set crossKvCacheFraction for encoder-decoder model")
    if asked.reuse and asked.encoder is None and not engine.plugin("use_paged_context_fmha"):
        found.append("When KV cache block reuse is enabled, model has to be built with paged context FMHA support")
    tokens, longest = asked.cache_tokens, engine.limit("max_seq_len") * asked.beams
    if tokens is not None and tokens < longest:
        found.append(f"maxTokensInPagedKvCache ({tokens}) must be large enough to process at least 1 sequence to completion")
    if asked.mode in _BUILT and engine.build["speculative_decoding_mode"] != MODES[_BUILT[asked.mode]]:
        found.append("Speculative decoding module is not set to decoder domain")
    return found
