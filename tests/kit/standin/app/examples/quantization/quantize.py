"""Stand-in for quantization by calibration."""

from tensorrt_llm._standin.arguments import parser
from tensorrt_llm._standin.checkpoint import describe, save
from tensorrt_llm._standin.quantizing import CALIBRATED, PLAIN, calibrate
from tensorrt_llm._standin.sources import read
from tensorrt_llm.mapping import Mapping
from tensorrt_llm.models.modeling_utils import QuantConfig

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "PhiForCausalLM",
    "Phi3ForCausalLM",
)


def main() -> None:
    args = parser("quantize").parse_args()
    source = read(args.model_dir, ARCHITECTURES)
    algorithm = PLAIN.get(args.qformat) or CALIBRATED.get(args.qformat)
    if args.qformat in CALIBRATED or args.kv_cache_dtype is not None:
        calibrate(args.calib_dataset, args.calib_size)
    cache = None if args.kv_cache_dtype is None else args.kv_cache_dtype.upper()
    quantization = QuantConfig(
        algorithm, cache, args.awq_block_size, pre_quant_scale="awq" in args.qformat, exclude_modules=("lm_head",)
    )
    world = args.tp_size * args.pp_size * args.cp_size
    mapping = Mapping(world, args.tp_size, args.pp_size, args.cp_size)
    save(describe(source, args.dtype, mapping, quantization), args.output_dir)


if __name__ == "__main__":
    main()
