"""The program trtllm-build."""

import time
from pathlib import Path

from tensorrt_llm._standin.arguments import parser
from tensorrt_llm._standin.building import limits, load, save
from tensorrt_llm.version import __version__


def main() -> None:
    """Read the checkpoint, settle the limits, write the engines."""
    args = parser("trtllm-build", "plugins", prog="trtllm-build").parse_args()
    began = time.monotonic()
    if args.checkpoint_dir is None:
        raise AssertionError("--checkpoint_dir is needed: this stand-in builds no engine of a config alone")
    checkpoint = load(Path(args.checkpoint_dir))
    settled = limits(args, checkpoint)
    document = {"version": __version__, "pretrained_config": dict(checkpoint.config), "build_config": settled}
    save(checkpoint, document, Path(args.output_dir), dry=args.dry_run)
    print(f"[TensorRT-LLM] [I] Total time of building all engines: {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
