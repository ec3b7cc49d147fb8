"""A stand-in for NVIDIA's package, written for forge's tests: it converts and "builds" without a GPU or a compiler.

Like the original, it says its version on stdout when it is imported: whoever reads a script's output has to bear that.
"""

from tensorrt_llm.version import __version__

__all__ = ["__version__"]

print(f"[TensorRT-LLM] TensorRT-LLM version: {__version__}")
