"""vllm.config, as far as it is used."""

from dataclasses import dataclass


@dataclass
class ModelConfig:
    model: str
    max_model_len: int


@dataclass
class VllmConfig:
    model_config: ModelConfig
