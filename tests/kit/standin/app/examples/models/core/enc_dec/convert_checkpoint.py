"""Stand-in for the conversion of encoder-decoder models: T5 becomes two checkpoints."""

from pathlib import Path

from tensorrt_llm._standin.arguments import parser
from tensorrt_llm._standin.checkpoint import describe, extended, save
from tensorrt_llm._standin.quantizing import of_script
from tensorrt_llm._standin.sources import read
from tensorrt_llm.mapping import Mapping

ARCHITECTURES = ("T5ForConditionalGeneration", "T5Model", "MT5ForConditionalGeneration")


def main() -> None:
    args = parser("enc_dec").parse_args()
    if args.model_type != "t5":
        raise NotImplementedError(f"this stand-in converts t5, not {args.model_type}")
    mapping = Mapping(args.tp_size * args.pp_size, args.tp_size, args.pp_size)
    source = read(args.model_dir, ARCHITECTURES)
    whole = describe(source, args.dtype, mapping, of_script(args))
    common = {"model_type": args.model_type, "position_embedding_type": "relative", "has_position_embedding": False}
    for half, layers in (("encoder", source.number("num_layers")), ("decoder", source.number("num_decoder_layers"))):
        told = {**common, "num_hidden_layers": layers, "skip_cross_kv": args.skip_cross_kv}
        if half == "decoder":
            told["encoder_hidden_size"] = source.number("d_model")
            told["encoder_num_heads"] = source.number("num_heads")
        other = "decoder." if half == "encoder" else "encoder."
        kept = {name: tensor for name, tensor in source.tensors.items() if not name.startswith(other)}
        save(extended(whole, f"{half.capitalize()}Model", told), Path(args.output_dir) / half, kept)


if __name__ == "__main__":
    main()
