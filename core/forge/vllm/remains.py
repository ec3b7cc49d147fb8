"""What an engine puts outside its process: shared memory, and a folder for its sockets. All of it begins with one name."""

import os
import shutil
from pathlib import Path

PREFIX = "FORGE_VLLM_PREFIX"
"""Variable that tells the engine how the names begin."""
_PLACE = Path("/dev/shm")  # noqa: S108  # where POSIX puts shared memory on Linux
_NVIDIA = Path("/dev/nvidiactl")
"""Where NVIDIA's driver is spoken to; a machine without it has no GPU for vLLM."""


def folder(prefix: str) -> Path:
    """A new folder that only this user can enter; in memory, so that nothing is left when the machine goes down."""
    place = _PLACE / f"{prefix}run"
    place.mkdir(mode=0o700)
    return place


def clear(prefix: str) -> None:
    """Remove all that begins with ``prefix``, which is not empty."""
    for left in (each for name in (prefix, f"sem.{prefix}") for each in _PLACE.glob(f"{name}*") if prefix):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def prefix(server: str, pid: int) -> str:
    """The name for one engine: of the ``server`` whose model it is, so that its end takes this too, and of the stub ``pid``."""
    return f"{server or 'forge-vllm'}-{pid}-"


def environment(inherited: dict[str, str], prefix: str, folder: Path, *, eager: bool) -> dict[str, str]:
    """What the engine's process sees: where things are, and that it asks nobody on the network.

    vLLM compiles some functions of its sampler even where it is told to be ``eager``: on a CPU that takes a C++ compiler, and
    the first request that wants log-probabilities many seconds.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith("PYTHON")}
    libraries = [each for each in kept.pop("LD_LIBRARY_PATH", "").split(os.pathsep) if each and "nvidia_pytriton" not in each]
    return {
        "VLLM_HOST_IP": "127.0.0.1",  # where its processes meet: by itself it would take the machine's outward address
        **kept,
        **({"LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else {}),
        **({"TORCH_COMPILE_DISABLE": "1"} if eager and not _NVIDIA.exists() else {}),
        PREFIX: prefix,
        "VLLM_RPC_BASE_PATH": str(folder),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
