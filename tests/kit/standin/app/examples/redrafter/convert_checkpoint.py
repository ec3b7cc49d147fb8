"""Stand-in for the conversion of a base model together with its recurrent drafter."""

from pathlib import Path

from tensorrt_llm._standin.arguments import parser
from tensorrt_llm._standin.checkpoint import describe, extended, save
from tensorrt_llm._standin.sources import load_json, read, weights
from tensorrt_llm.mapping import Mapping
from tensorrt_llm.models.modeling_utils import QuantConfig


def main() -> None:
    args = parser("redrafter").parse_args()
    source = read(args.model_dir, ("LlamaForCausalLM",))
    made = describe(source, args.dtype, Mapping(args.tp_size, args.tp_size), QuantConfig())
    drafter = Path(args.drafter_model_dir)
    load_json(drafter / "config.json")
    weights(drafter)
    told = {
        "redrafter_num_beams": args.redrafter_num_beams,
        "redrafter_draft_len_per_beam": args.redrafter_draft_len_per_beam,
        "redrafter_greedy_search": args.redrafter_greedy_search,
        "max_draft_len": args.redrafter_num_beams * args.redrafter_draft_len_per_beam,
    }
    save(extended(made, "ReDrafterForLLaMALM", told), args.output_dir)


if __name__ == "__main__":
    main()
