"""What forge's engine process and Triton's backend use of vLLM, in miniature: it counts instead of speaking, and a child of its
own keeps it alive.

Laid out as a package called ``vllm`` by ``vllm_kit`` and by the stand-in of Triton's image. Names, types, places and what goes
wrong are vLLM's: 0.32's, and those of 0.13 that are gone since.
"""

from .engine.arg_utils import AsyncEngineArgs
from .inputs.data import TextPrompt
from .outputs import CompletionOutput, RequestOutput
from .sampling_params import SamplingParams
from .v1.engine.async_llm import AsyncLLM as AsyncLLMEngine

__version__ = "0.32.0"
__all__ = [
    "AsyncEngineArgs",
    "AsyncLLMEngine",
    "CompletionOutput",
    "RequestOutput",
    "SamplingParams",
    "TextPrompt",
    "__version__",
]
