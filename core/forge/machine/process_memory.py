"""What processes hold of this machine's memory and of its GPUs'. Linux's /proc, and NVML through nvidia-smi."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from forge.machine.gpus import smi
from forge.schema.values import MIB

_PROC = Path("/proc")


def host(pids: Iterable[int]) -> int:
    """Bytes that these processes hold together. What several share counts once among them all, by parts (PSS), where the
    system says that; else each process's resident bytes."""
    return sum(_one(pid) for pid in set(pids))


def _one(pid: int) -> int:
    for file, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        with suppress(OSError, ValueError, IndexError):
            for line in (_PROC / str(pid) / file).read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith(key):
                    return int(line.split()[1]) * 1024
    return 0


def on_gpus(environ: Mapping[str, str]) -> dict[int, int]:
    """Process -> bytes that it holds on all GPUs; empty where no driver says so, as inside many containers."""
    found: dict[int, int] = {}
    for line in smi(environ, "compute-apps=pid,used_memory"):
        pid, _, used = (cell.strip() for cell in line.partition(","))
        if pid.isdigit() and used.isdigit():  # [N/A] where a driver does not say
            found[int(pid)] = found.get(int(pid), 0) + int(used) * MIB
    return found


def age(started: float) -> float | None:
    """Seconds since a process started, of which ``started`` are the clock ticks since boot; None where nobody says."""
    if not started:
        return None
    with suppress(OSError, ValueError, IndexError):
        return max(0.0, float((_PROC / "uptime").read_text().split()[0]) - started / os.sysconf("SC_CLK_TCK"))
    return None
