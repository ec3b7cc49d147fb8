"""What a command of a campaign has left behind: processes, shared memory, ports, locks, temporary files, half a publish."""

import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

from forge.machine import processes
from forge.serve.state import States

GRACE = 30.0
"""Seconds that a server has to be gone, or to be back, after the command that saw to it."""


def told(*folders: Path) -> list[int]:
    """Living processes that were told of these folders, apart from this campaign itself and what was forked off it."""
    own = Path("/proc/self/cmdline").read_bytes()
    # One called home-1 is not below home.
    marks, found = [re.compile(re.escape(bytes(place)) + rb"(?![\w.-])") for place in folders], list[int]()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and processes.started(int(entry.name)) is not None:
                words = (entry / "cmdline").read_bytes().replace(own, b"") + (entry / "environ").read_bytes()
                if any(mark.search(words) for mark in marks) and os.getsid(int(entry.name)) != os.getsid(0):
                    found.append(int(entry.name))
    return found


def locks(*folders: Path) -> list[str]:
    """Files in these folders that some process has locked."""
    found: set[str] = set()
    for handle in (handle for process in Path("/proc").iterdir() for handle in _handles(process)):
        with suppress(OSError):
            place = os.readlink(handle)
            ours = any(Path(place).is_relative_to(folder) for folder in folders)
            if ours and "lock:" in (handle.parents[1] / "fdinfo" / handle.name).read_text():
                found.add(place)
    return sorted(found)


def _handles(process: Path) -> list[Path]:
    """A process's open files; none of one that is gone."""
    with suppress(OSError):
        return list((process / "fd").iterdir())
    return []


def left(folder: Path, home: Path, repositories: tuple[Path, ...], ports: tuple[int, ...]) -> list[str]:
    """All that is left now of what is over, in words; a server that lives may have its own."""
    states = States(home / "servers")
    kept = list(states.kept())
    # Of a container whose first process was not yet what it is now when it was noted, the start is not known.
    living = [one for one in kept if (now := processes.started(one.pid)) is not None and one.started in (0, now)]
    marked = {pid for one in living for pid in processes.marked(one.shared_memory)}
    found = [f"a state file of {one.repository}, whose server is dead" for one in kept if one not in living]
    for pid in sorted({*told(folder, home)} - marked):
        with suppress(OSError):
            found.append(f"process {pid}: {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
    for mark in {states.marker(each) for each in repositories} - {one.shared_memory for one in living}:
        found += [f"shared memory {each.name}" for each in processes.SHARED_MEMORY.glob(f"*{mark}*")]
    taken = {port for one in living for port in (one.ports.http, one.ports.grpc, one.ports.metrics)}
    for port in {*ports} - taken:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            found.append(f"somebody listens at port {port}")
    found += [f"a lock on {each}" for each in locks(home, *repositories)]
    for each in (folder / "tmp").glob("forge-*"):
        if processes.started(int(each.name.split("-")[1])) is None:
            found.append(f"temporary files {each.name}")
    for journal in (each / ".forge" for each in repositories):
        if journal.exists():
            found.append(f"a publish half way: {sorted(each.name for each in journal.rglob('*'))}")
    return found


def in_time(
    folder: Path, home: Path, repositories: tuple[Path, ...], ports: tuple[int, ...], grace: float = GRACE
) -> list[str]:
    """What is still left after some seconds."""
    until = time.monotonic() + grace
    while (found := left(folder, home, repositories, ports)) and time.monotonic() < until:
        time.sleep(0.1)
    return found
