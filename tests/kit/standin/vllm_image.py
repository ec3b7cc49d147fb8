"""A stand-in for Triton's image with vLLM, made as that of TensorRT-LLM's: the same Triton, Python and programs.

Its places are those of nvcr.io/nvidia/tritonserver:26.01-vllm-python-py3: Triton under /opt/tritonserver, the `vllm` backend
among its backends, a package ``vllm`` in its Python. The backend is NVIDIA's own where `make originals` has brought it,
else one in miniature; the package is the stand-in of vLLM's API.
"""

from dataclasses import dataclass
from pathlib import Path

from standin import image
from standin.tree import File, Image, Link, under

HERE = Path(__file__).parent
REFERENCE = "forge-standin/tritonserver:26.01-vllm-python-py3"
VERSION = "0.13.0"
_METADATA = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\nSummary: forge's stand-in for vLLM\n"


@dataclass(frozen=True)
class VllmRelease(image.Release):
    """The image with vLLM; ``backend`` is the folder of NVIDIA's own backend, or None for the one in miniature."""

    reference: str = REFERENCE
    tag: str = "26.01"
    backend: Path | None = None

    def parts(self, at: str) -> dict[str, File | Link]:
        made = under(self.backend or HERE / "vllm_backend", "opt/tritonserver/backends/vllm")
        made |= under(HERE.parent / "standin_vllm", f"{at}/vllm")
        made[f"{at}/transformers/__init__.py"] = File(b"")
        made[f"{at}/transformers/models/modeling_llama.py"] = File(b"class LlamaForCausalLM: ...\n")
        information = f"{at}/vllm-{VERSION}.dist-info"
        made[f"{information}/METADATA"] = File(_METADATA.encode())
        made[f"{information}/INSTALLER"] = File(b"pip\n")
        listed = sorted(path.removeprefix(f"{at}/") for path in made if path.startswith(f"{at}/"))
        made[f"{information}/RECORD"] = File("".join(f"{path},,\n" for path in listed).encode())
        return made

    @property
    def brought(self) -> tuple[str, ...]:
        return ("pip", "msgspec", "pillow")


def archive(environment: Path, kept: Path, backend: Path | None = None) -> Image:
    """The archive for ``docker load``, as ``image.archive`` keeps it."""
    reference = f"{REFERENCE}-originals" if backend else REFERENCE
    return image.archive(environment, VllmRelease(reference, backend=backend), kept)
