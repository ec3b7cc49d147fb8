"""The config.pbtxt of a model of vLLM: one model, whose other half is model.json beside it. Pure but for forge's own files."""

from forge.files import texts
from forge.repository.config import CONFIG
from forge.schema.values import Role, TextFile

GPUS = "gpus"
"""Parameter that tells forge's vllm backend which GPUs it may use (``forge.vllm.backend``)."""


def vllm_skeleton(*, image: bool = False, gpus: str = "") -> tuple[TextFile, ...]:
    """The one model of the runtime vllm; for the backend in Triton's ``image`` with what that has and forge's own has not.
    Forge's own is told which ``gpus`` vLLM may use."""
    parts = (f"{Role.VLLM}.pbtxt", *(("vllm_image.pbtxt",) if image else ()))
    text = "".join(texts.part("forge.repository.skeletons", part) for part in parts)
    told = f'parameters {{ key: "{GPUS}" value {{ string_value: "{gpus}" }} }}\n' if gpus else ""
    return (TextFile(f"{Role.VLLM}/{CONFIG}", text + told),)
