"""vllm.engine.arg_utils, as far as it is used: which arguments there are, and what becomes of them."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..config import LoRAConfig, ModelConfig, VllmConfig
from ..model_executor.models.registry import supported
from ..usage.usage_lib import UsageContext


@dataclass
class EngineArgs:
    model: str = "Qwen/Qwen3-0.6B"
    tokenizer: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool | None = None
    enable_lora: bool = False
    speculative_config: dict[str, object] | None = None
    max_loras: int = 1
    max_lora_rank: int = 16
    disable_log_stats: bool = False
    aggregate_engine_logging: bool = False

    def create_engine_config(self, usage_context: UsageContext | None = None) -> VllmConfig:
        """The whole configuration; ValueError, as vLLM has it, for what does not go with the checkpoint."""
        if not (Path(self.model) / "config.json").is_file():
            raise ValueError(f"Invalid repository ID or local directory specified: {self.model!r}")
        stated = json.loads((Path(self.model) / "config.json").read_text())
        supported(stated.get("architectures") or [])
        longest = int(stated.get("max_position_embeddings", 2048))
        if self.max_model_len is not None and self.max_model_len > longest:
            raise ValueError(
                f"User-specified max_model_len ({self.max_model_len}) is greater than the derived max_model_len"
                f" (max_position_embeddings={longest})"
            )
        lora = LoRAConfig(self.max_lora_rank, self.max_loras) if self.enable_lora else None
        return VllmConfig(ModelConfig(self.model, self.max_model_len or longest), lora)


@dataclass
class AsyncEngineArgs(EngineArgs):
    enable_log_requests: bool = False
