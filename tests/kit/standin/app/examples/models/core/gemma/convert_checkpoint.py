"""Stand-in for the conversion of Gemma, with the two calls that forge fixes."""

from argparse import Namespace
from dataclasses import replace

from tensorrt_llm._standin.arguments import parser
from tensorrt_llm._standin.checkpoint import save
from tensorrt_llm._standin.quantizing import calibrate
from tensorrt_llm.mapping import Mapping
from tensorrt_llm.models.gemma.config import GemmaConfig
from tensorrt_llm.models.modeling_utils import QuantConfig

PRECISIONS = {"int8": "W8A16", "int4": "W4A16", "w4a8_awq": "W4A8_AWQ", "w4a16_awq": "W4A16_AWQ"}
READERS = {"hf": "Hugging Face"}


def create_quant_config(args: Namespace) -> QuantConfig:
    """What the flags ask for."""
    algorithm = PRECISIONS[args.weight_only_precision] if args.weight_only_precision else None
    if args.enable_fp8:
        algorithm = "FP8"
    cache = "FP8" if args.fp8_kv_cache else "INT8" if args.int8_kv_cache else None
    if args.int8_kv_cache or args.use_smooth_quant:
        calibrate(args.calib_dataset, 512)
    if args.smoothquant is not None:
        return QuantConfig(algorithm or "W8A8_SQ_PER_TENSOR_PLUGIN", cache, smoothquant_val=args.smoothquant)
    # Refused where QuantConfig checks its types: the value is a number.
    return QuantConfig(quant_algo=algorithm, kv_cache_quant_algo=cache, smoothquant_val=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def main() -> None:
    args = parser("gemma").parse_args()
    assert args.weight_only_precision or not args.use_weight_only
    reader = READERS[args.ckpt_type]
    print(f"Loading source parameters ({reader}) from {args.model_dir}")
    quant_config = create_quant_config(args)
    # The third position is mapping, and no quantization: forge names the argument.
    config = GemmaConfig.from_hugging_face(args.model_dir, args.dtype, quant_config)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    mapping = Mapping(args.world_size, args.world_size)
    heads = config.source.number("num_attention_heads")
    if heads % args.world_size:
        raise AssertionError(f"num_attention_heads ({heads}) must be divisible by tp_size ({args.world_size})")
    save(replace(config, mapping=mapping), args.output_model_dir)


if __name__ == "__main__":
    main()
