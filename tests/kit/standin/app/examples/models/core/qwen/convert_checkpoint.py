"""Stand-in for the conversion of Qwen 1.5, 2, 2.5 and 3."""

from tensorrt_llm._standin.arguments import parser
from tensorrt_llm._standin.checkpoint import describe, save
from tensorrt_llm._standin.quantizing import of_script
from tensorrt_llm._standin.sources import read
from tensorrt_llm.mapping import Mapping

ARCHITECTURES = (
    "QWenLMHeadModel",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)


def main() -> None:
    args = parser("qwen").parse_args()
    world = args.tp_size * args.pp_size * args.cp_size
    mapping = Mapping(world, args.tp_size, args.pp_size, args.cp_size, args.moe_tp_size, args.moe_ep_size)
    save(describe(read(args.model_dir, ARCHITECTURES), args.dtype, mapping, of_script(args)), args.output_dir)


if __name__ == "__main__":
    main()
