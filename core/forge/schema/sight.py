"""What is said where an image is asked of a runtime that takes none: the same at a build, a client and the OpenAI port."""

from forge.schema.values import RuntimeKind

SEEING = "models of the runtime vllm take images, where their checkpoint can see"
LLMAPI = (
    "NVIDIA's llmapi model takes text alone up to TensorRT-LLM 1.2.1 (image 26.07); its input for images is merged for 1.3 "
    "(NVIDIA/TensorRT-LLM PR 18381) and in no image yet, and forge does not fill it"
)


def blind(kind: RuntimeKind) -> str:
    """Why a model of this runtime is shown no image, and what could be."""
    return f"{LLMAPI}; {SEEING}" if kind is RuntimeKind.LLMAPI else SEEING
