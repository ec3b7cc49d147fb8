"""Gemma's config, as its conversion script asks for it."""

from pathlib import Path

from tensorrt_llm._standin.checkpoint import Pretrained, describe
from tensorrt_llm._standin.sources import read
from tensorrt_llm.mapping import Mapping
from tensorrt_llm.models.modeling_utils import QuantConfig

ARCHITECTURES = ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")


class GemmaConfig:
    """Only its door: what comes out is the stand-in's own description of a converted model."""

    @classmethod
    def from_hugging_face(
        cls,
        hf_config_or_dir: Path,
        dtype: str = "auto",
        mapping: Mapping | None = None,
        quant_config: QuantConfig | None = None,
    ) -> Pretrained:
        """``mapping`` stands third: a quantization passed there by position is taken for it, and has no world size."""
        spread = mapping or Mapping()
        if spread.world_size < 1:
            raise ValueError(f"world_size has to be positive, not {spread.world_size}")
        return describe(read(hf_config_or_dir, ARCHITECTURES), dtype, spread, quant_config or QuantConfig())
