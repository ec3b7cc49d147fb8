"""trtllm-build: from a checkpoint to "engines" that hold it, with the limits that the originals state."""

import json
import shutil
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tensorrt_llm._standin import lora
from tensorrt_llm._standin.arguments import table
from tensorrt_llm._standin.sources import load_json
from tensorrt_llm._standin.tensors import CheckpointError, read as read_tensors

MODES = {
    None: 1,
    "draft_tokens_external": 2,
    "medusa": 4,
    "lookahead_decoding": 8,
    "explicit_draft_tokens": 16,
    "eagle": 32,
}
"""--speculative_decoding_mode -> its number in config.json."""
_HEADS = {"medusa": "Medusa", "eagle": "Eagle", "explicit_draft_tokens": "ReDrafter"}
"""Modes that need a checkpoint converted for them -> how its architecture begins."""
_SHARED_CACHE = frozenset({"draft_tokens_external", "eagle"})
"""Modes that read a cache which others wrote, so that context attention has to be paged."""


class BuildError(AssertionError):
    """Limits or a checkpoint of which no engine can be built."""


@dataclass(frozen=True)
class Checkpoint:
    """What trtllm-build reads: config.json and a file for each rank."""

    folder: Path
    config: Mapping[str, object]

    @property
    def architecture(self) -> str:
        return str(self.config["architecture"])

    @property
    def world_size(self) -> int:
        return cast("dict[str, int]", self.config["mapping"])["world_size"]

    def rank(self, number: int) -> Path:
        return self.folder / f"rank{number}.safetensors"


def load(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``, whole."""
    config = load_json(folder / "config.json")
    for key in ("architecture", "dtype", "num_hidden_layers", "vocab_size", "mapping", "quantization"):
        if key not in config:
            raise KeyError(f"{folder}/config.json has no {key}: it is no TensorRT-LLM checkpoint; convert it first")
    made = Checkpoint(folder, config)
    for number in range(made.world_size):
        if not made.rank(number).exists():
            raise CheckpointError(f"checkpoint of rank {number} is missing: {made.rank(number)}")
        read_tensors(made.rank(number))
    return made


def limits(args: Namespace, checkpoint: Checkpoint) -> dict[str, object]:
    """build_config: the flags, with what is left out deduced and what goes too far cut back, each aloud."""
    plugins = _plugins(args, str(checkpoint.config["dtype"]))
    draft = cast("int", args.max_draft_len or checkpoint.config.get("max_draft_len", 0))
    _check(args, checkpoint, draft, paged=bool(plugins["use_paged_context_fmha"]))
    enabled: list[str] = args.lora_target_modules or []
    longest = args.max_seq_len or cast("int", checkpoint.config["max_position_embeddings"])
    if args.max_input_len > longest:
        warn(f"max_input_len is {args.max_input_len} is larger than max_seq_len {longest}, clipping it to max_seq_len")
    if longest > cast("int", checkpoint.config["max_position_embeddings"]):
        warn(f"max_seq_len {longest} is larger than max_position_embeddings, the model accuracy might be affected")
    tokens = min(args.max_num_tokens, longest * args.max_batch_size)
    if tokens < args.max_num_tokens:
        warn(f"max_num_tokens ({args.max_num_tokens}) shouldn't be greater than max_seq_len * max_batch_size ({tokens})")
    return {
        "max_input_len": min(args.max_input_len, longest),
        "max_seq_len": longest,
        "opt_batch_size": 8,
        "max_batch_size": args.max_batch_size,
        "max_beam_width": args.max_beam_width,
        "max_num_tokens": tokens,
        "opt_num_tokens": args.opt_num_tokens or min(args.max_batch_size * args.max_beam_width, tokens),
        "max_prompt_embedding_table_size": args.max_prompt_embedding_table_size,
        "kv_cache_type": str(vars(args).get("kv_cache_type", "paged")).upper(),
        "gather_context_logits": args.gather_context_logits or args.gather_all_token_logits,
        "gather_generation_logits": args.gather_generation_logits or args.gather_all_token_logits,
        "strongly_typed": True,
        "profiling_verbosity": args.profiling_verbosity,
        "enable_debug_output": args.enable_debug_output,
        "max_draft_len": draft,
        "speculative_decoding_mode": MODES[args.speculative_decoding_mode],
        "max_encoder_input_len": args.max_encoder_input_len,
        "weight_streaming": args.weight_streaming,
        "lora_config": {
            "lora_dir": args.lora_dir or [],
            "lora_ckpt_source": args.lora_ckpt_source,
            "max_lora_rank": args.max_lora_rank,
            "lora_target_modules": lora.targets(enabled) if plugins["lora_plugin"] else enabled,
        },
        "plugin_config": plugins,
    }


def _check(args: Namespace, checkpoint: Checkpoint, draft: int, *, paged: bool) -> None:
    for name in ("max_batch_size", "max_input_len", "max_seq_len", "max_beam_width", "max_num_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise BuildError(f"{name} has to be positive, not {value}")
    mode = args.speculative_decoding_mode
    wanted = _HEADS.get(mode, "")
    if wanted and not checkpoint.architecture.startswith(wanted):
        raise BuildError(f"{mode} needs a checkpoint with its heads, and this is a {checkpoint.architecture}")
    for name, prefix in _HEADS.items():
        if checkpoint.architecture.startswith(prefix) and mode != name:
            raise BuildError(f"a {checkpoint.architecture} has to be built with --speculative_decoding_mode {name}")
    if mode is not None and draft < 1:
        raise BuildError(f"max_draft_len must be larger than 0 for speculative decoding mode {mode}")
    if mode is not None and args.max_beam_width > 1:
        raise BuildError(f"speculative decoding mode {mode} supports only max_beam_width 1, not {args.max_beam_width}")
    if mode in _SHARED_CACHE and not paged:
        raise BuildError(f"use_paged_context_fmha must be enabled for speculative decoding mode {mode}")


def _plugins(args: Namespace, dtype: str) -> dict[str, object]:
    made: dict[str, object] = {"dtype": dtype}
    for flag, row in table()["plugins"].items():
        value = getattr(args, flag.removeprefix("--"))
        if row.get("choices") == ["enable", "disable"]:
            made[flag.removeprefix("--")] = value == "enable"
        else:
            made[flag.removeprefix("--")] = {"disable": None, "auto": dtype}.get(value, value)
    return made


def save(checkpoint: Checkpoint, document: Mapping[str, object], into: Path, *, dry: bool) -> None:
    """Write config.json and an engine for each rank; nothing but the config when it is a dry run."""
    into.mkdir(parents=True, exist_ok=True)
    if not dry:
        for number in range(checkpoint.world_size):
            shutil.copyfile(checkpoint.rank(number), into / f"rank{number}.engine")
            print(f"[TensorRT-LLM] [I] Serializing engine to {into}/rank{number}.engine...")
    (into / "config.json").write_text(json.dumps(document, indent=4), encoding="utf-8")


def warn(text: str) -> None:
    print(f"[TensorRT-LLM] [W] {text}")
