"""What this machine computes with: the processor's name, how many this process may use, and memory."""

import os
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_NAME = re.compile(r"^model name\s*:\s*(.+)$", re.MULTILINE)


def processor(cpuinfo: Path = CPUINFO) -> tuple[str, int, int]:
    """(name, processors, bytes of memory); the architecture's name where the system gives no other, as on ARM."""
    try:
        found = _NAME.search(cpuinfo.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return found[1].strip() if found else platform.machine(), len(os.sched_getaffinity(0)), memory
