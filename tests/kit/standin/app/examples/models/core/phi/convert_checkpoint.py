"""Stand-in for the conversion of Phi."""

from tensorrt_llm._standin.arguments import parser
from tensorrt_llm._standin.checkpoint import describe, save
from tensorrt_llm._standin.quantizing import of_script
from tensorrt_llm._standin.sources import read
from tensorrt_llm.mapping import Mapping

ARCHITECTURES = ("PhiForCausalLM", "Phi3ForCausalLM", "Phi3SmallForCausalLM", "PhiMoEForCausalLM", "PhimoeForCausalLM")


def main() -> None:
    args = parser("phi").parse_args()
    if args.pp_size != 1:
        raise AssertionError("pipeline parallelism is not supported by Phi: pp_size has to be 1")
    mapping = Mapping(args.tp_size, args.tp_size, 1, 1, args.moe_tp_size, args.moe_ep_size)
    save(describe(read(args.model_dir, ARCHITECTURES), args.dtype, mapping, of_script(args)), args.output_dir)


if __name__ == "__main__":
    main()
