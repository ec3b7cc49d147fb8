"""Looks at this machine: NVIDIA's driver and GPUs, disks, shared memory, and what serves the twin."""

import mmap
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from forge.errors import HostError
from forge.files.interpreter import own_python
from forge.machine import environments, unlisted
from forge.machine.bonds import answered, temporary
from forge.machine.gpus import seen, smi
from forge.machine.machine import Disk
from forge.machine.processes import SHARED_MEMORY, inherited
from forge.schema.values import Environment, Gpu, Host

PROC = Path("/proc/driver/nvidia")
_RESTRICTION = b"http-restricted-api"
"""The option's name, which stands in every program that knows it."""
_PATIENCE = 20.0  # seconds
_LOADED = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")


class ThisMachine:
    """The machine that forge runs on. ``proc`` is where NVIDIA's driver says what it is."""

    def __init__(self, environ: Mapping[str, str], proc: Path = PROC, shared_memory: Path = SHARED_MEMORY) -> None:
        self._environ = environ
        self._proc = proc
        self._shared_memory = shared_memory

    def driver(self) -> str:
        if asked := smi(self._environ, "gpu=driver_version"):
            return asked[0].strip()
        match = _LOADED.search(_text(self._proc / "version"))
        return match[1] if match else ""

    def gpus(self) -> tuple[Gpu, ...]:
        if found := seen(self._environ):
            return found
        told = [_text(each) for each in sorted(self._proc.glob("gpus/*/information"))]
        return tuple(
            Gpu(match[1].strip(), 0, "") for text in told if (match := re.search(r"^Model:\s*(.+)$", text, re.MULTILINE))
        )

    def inside(self) -> bool:
        return shutil.which("trtllm-build", path=self._environ.get("PATH", os.defpath)) is not None

    def disk(self, folder: Path) -> Disk:
        there = folder.absolute()
        while not there.is_dir() and there != there.parent:
            there = there.parent
        return Disk(str(folder), shutil.disk_usage(there).free, there.stat().st_dev)

    def shared_memory(self) -> int:
        return shutil.disk_usage(self._shared_memory).free if self._shared_memory.is_dir() else 0

    def restricts(self, triton: str) -> bool:
        server = Path(triton) / "bin" / "tritonserver"
        if not triton or not server.is_file():
            return True
        with server.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            return held.find(_RESTRICTION) >= 0

    def traces(self) -> bool:
        try:
            python, place = own_python(), temporary()
        except HostError:
            return True
        with tempfile.NamedTemporaryFile("w", prefix="probe-", dir=place) as key:
            key.write("probe")
            key.flush()
            # By its own way: what forbids it (Yama, seccomp, a sandbox) is seen by trying alone.
            words = (python, "-I", "-S", unlisted.__file__, key.name, "true", unlisted.SECRET)
            done = answered(words, inherited(self._environ), _PATIENCE)
        return done is None or unlisted.SHUT not in done.stderr

    def host(self) -> Host:
        return environments.host(self._environ)

    def check(self, environment: Environment) -> None:
        environments.check(environment)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


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
