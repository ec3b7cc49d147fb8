"""Stand-in for the conversion of Llama, Mistral and Mixtral."""

from tensorrt_llm._standin.arguments import parser
from tensorrt_llm._standin.checkpoint import describe, save
from tensorrt_llm._standin.quantizing import of_script
from tensorrt_llm._standin.sources import read
from tensorrt_llm.mapping import Mapping

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")


def main() -> None:
    args = parser("llama").parse_args()
    if args.meta_ckpt_dir is not None:
        raise NotImplementedError("this stand-in reads Hugging Face checkpoints, not Meta's")
    world = args.tp_size * args.pp_size * args.cp_size
    mapping = Mapping(world, args.tp_size, args.pp_size, args.cp_size, args.moe_tp_size, args.moe_ep_size)
    quantization = of_script(args)
    made = describe(read(args.model_dir, ARCHITECTURES), args.dtype, mapping, quantization)
    save(made, args.output_dir, {} if args.save_config_only else None)


if __name__ == "__main__":
    main()
