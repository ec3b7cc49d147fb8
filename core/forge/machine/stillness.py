"""A process that lives and does nothing: stopped or frozen by somebody, or hung in its own fault. Linux's word."""

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from forge.machine import processes

_FAULTS = (signal.SIGABRT, signal.SIGSEGV)
_CGROUPS = Path("/sys/fs/cgroup")


def stands(pid: int) -> bool:
    """Whether somebody has it stand still, who may have it go on: SIGSTOP, a debugger, a cgroup's freezer (``docker pause``,
    ``systemctl freeze``)."""
    return processes.stopped(pid) or any(map(_frozen, _lines(Path(f"/proc/{pid}/cgroup"))))


def faults(pid: int) -> dict[str, str]:
    """Threads of a process, and of what it has started, that are in the handler of a fault: their path -> the signal's name.

    The kernel blocks a signal in the thread that handles it (sigaction(2), SigBlk in proc(5)). One that wants to be left alone
    blocks SIGTERM as well.
    """
    found: dict[str, str] = {}
    for each in processes.offspring((pid,)):
        for status in Path(f"/proc/{each}/task").glob("*/status"):
            said = next((line for line in _lines(status) if line.startswith("SigBlk:")), "SigBlk: 0")
            blocked = int(said.split()[1], 16)
            caught = next((number for number in _FAULTS if blocked >> (number - 1) & 1), None)
            if caught and not blocked >> (signal.SIGTERM - 1) & 1:
                found[str(status)] = caught.name
    return found


def _frozen(line: str) -> bool:
    """By a line of proc(5)'s cgroup: hierarchy, controllers and path. Version 2 has one hierarchy, without controllers."""
    _, controllers, path = (*line.split(":", 2), "", "")[:3]
    if "freezer" in controllers.split(","):
        return bool({"FROZEN", "FREEZING"} & set(_lines(_CGROUPS / "freezer" / path.lstrip("/") / "freezer.state")))
    return not controllers and "frozen 1" in _lines(_CGROUPS / path.lstrip("/") / "cgroup.events")


def _lines(file: Path) -> Iterator[str]:
    """Of one of the kernel's files; none of one that is gone, or that this user may not read."""
    with suppress(OSError):
        yield from file.read_text(encoding="utf-8", errors="replace").splitlines()
