"""Stand-in for the conversion of a base model together with its Medusa heads."""

from pathlib import Path

from tensorrt_llm._standin.arguments import parser
from tensorrt_llm._standin.checkpoint import describe, extended, save
from tensorrt_llm._standin.quantizing import of_script
from tensorrt_llm._standin.sources import load_json, read
from tensorrt_llm._standin.tensors import read as read_tensors
from tensorrt_llm.mapping import Mapping

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mixtral": "MixtralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
HEADS = "medusa_lm_head"


def check_heads(folder: Path, wanted: int) -> None:
    """The heads have to be there, and as many as are asked for."""
    config = load_json(folder / "config.json")
    trained = config.get("medusa_num_heads")
    if isinstance(trained, int) and wanted > trained:
        raise AssertionError(f"num_medusa_heads is {wanted}, and {folder} has {trained}")
    if (folder / f"{HEADS}.safetensors").exists():
        read_tensors(folder / f"{HEADS}.safetensors")
    elif not (folder / f"{HEADS}.pt").exists():
        raise FileNotFoundError(f"No such file: {folder}/{HEADS}.pt")


def main() -> None:
    args = parser("medusa").parse_args()
    if args.model_type not in ARCHITECTURES:
        raise AssertionError(f"Invalid model type: {args.model_type}")
    if args.medusa_model_dir is None:
        raise ValueError("medusa_model_dir is needed: this stand-in reads no single checkpoint of ModelOpt's")
    mapping = Mapping(args.tp_size * args.pp_size, args.tp_size, args.pp_size)
    source = read(args.model_dir, (ARCHITECTURES[args.model_type],))
    made = describe(source, args.dtype, mapping, of_script(args))
    check_heads(Path(args.medusa_model_dir), args.num_medusa_heads)
    told = {
        "max_draft_len": args.max_medusa_token_len,
        "num_medusa_heads": args.num_medusa_heads,
        "num_medusa_layers": args.num_medusa_layers,
    }
    save(extended(made, "MedusaForCausalLM", told), args.output_dir)


if __name__ == "__main__":
    main()
