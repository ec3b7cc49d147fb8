"""vllm.config, as far as it is used."""

from dataclasses import dataclass


@dataclass
class ModelConfig:
    model: str
    max_model_len: int


@dataclass
class LoRAConfig:
    max_lora_rank: int
    max_loras: int


@dataclass
class VllmConfig:
    model_config: ModelConfig
    lora_config: LoRAConfig | None = None
