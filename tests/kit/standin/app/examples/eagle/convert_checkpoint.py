"""Stand-in for the conversion of a base model together with its EAGLE draft."""

from pathlib import Path

from tensorrt_llm._standin.arguments import parser
from tensorrt_llm._standin.checkpoint import describe, extended, save
from tensorrt_llm._standin.quantizing import of_script
from tensorrt_llm._standin.sources import load_json, read, weights
from tensorrt_llm.mapping import Mapping


def check_draft(folder: Path) -> None:
    """A draft is a config and weights, pickled ones too."""
    load_json(folder / "config.json")
    if not (folder / "pytorch_model.bin").exists():
        weights(folder)


def main() -> None:
    args = parser("eagle").parse_args()
    if args.pp_size != 1:
        raise AssertionError("pipeline parallelism is not supported by EAGLE: pp_size has to be 1")
    source = read(args.model_dir, ("LlamaForCausalLM",))
    made = describe(source, args.dtype, Mapping(args.tp_size, args.tp_size), of_script(args))
    if args.eagle_model_dir is None:
        raise KeyError("eagle: without --eagle_model_dir the checkpoint has to be ModelOpt's, and this one is not")
    check_draft(Path(args.eagle_model_dir))
    told = {
        "max_draft_len": args.max_draft_len,
        "num_eagle_layers": args.num_eagle_layers,
        "max_non_leaves_per_layer": args.max_non_leaves_per_layer,
        "eagle_net_config": load_json(Path(args.eagle_model_dir) / "config.json"),
    }
    save(extended(made, "EagleForCausalLM", told), args.output_dir)


if __name__ == "__main__":
    main()
