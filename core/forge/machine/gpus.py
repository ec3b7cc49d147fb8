"""What this machine has free for models: its GPUs by NVML, through nvidia-smi, and its own memory."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from forge.machine.bonds import answered
from forge.machine.processes import beside_driver
from forge.schema.values import MIB, Gpu

PATIENCE = 20.0  # seconds; a driver that is not kept loaded needs some for each GPU
MEMINFO = Path("/proc/meminfo")


def present(environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs with memory of their own, with what is free of it now."""
    return tuple(gpu for gpu in seen(environ) if gpu.memory and gpu.free is not None)


def seen(environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """All GPUs that are here; none where there is no driver to ask, or it does not answer."""
    rows = [line.split(",", 3) for line in smi(environ, "gpu=memory.total,memory.free,compute_cap,name")]
    return tuple(_gpu(*(cell.strip() for cell in row)) for row in rows if len(row) == 4)


def smi(environ: Mapping[str, str], query: str) -> list[str]:
    """nvidia-smi's answer to ``--query-<query>``, by lines of CSV; none where it is missing or has no driver to ask."""
    program = shutil.which("nvidia-smi", path=environ.get("PATH", os.defpath))
    if program is None:
        return []
    asked = (program, f"--query-{query}", "--format=csv,noheader,nounits")
    done = answered(asked, beside_driver(environ), PATIENCE)
    return done.stdout.splitlines() if done and not done.returncode else []


def _gpu(total: str, free: str, capability: str, name: str) -> Gpu:
    """Figures are in MiB, or [N/A] where a GPU shares the machine's memory."""
    return Gpu(name, int(total) * MIB if total.isdigit() else 0, capability, int(free) * MIB if free.isdigit() else None)


def host_memory(meminfo: Path = MEMINFO, *, whole: bool = False) -> int:
    """Bytes that a new process can have without swapping, or all that the machine has; 0 where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(lines["MemTotal" if whole else "MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return 0
