"""What the store's tests make: provenances, small trees, and child processes of their own."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from forge.store.store import Provenance, Store

KEY = "ab" * 32


def key(number: int) -> str:
    return f"{number:064x}"


def provenance(step: str = "model", **inputs: str) -> Provenance:
    return Provenance(step, "Fetch", inputs, {})


def store(root: Path, clock: Callable[[], float] = time.time) -> Store:
    return Store(root, clock=clock)


def fill(out: Path) -> None:
    """A tree of every kind of thing that an artifact may hold."""
    (out / "1" / "deep").mkdir(parents=True)
    (out / "empty").mkdir()
    (out / "weights.bin").write_bytes(bytes(range(256)) * 1024)
    (out / "1" / "deep" / "config.json").write_text("{}")
    (out / "1" / "run").write_text("#!/bin/sh\n")
    (out / "1" / "run").chmod(0o755)
    (out / "python3").symlink_to(sys.executable)
    (out / "inner").symlink_to("1/deep")


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python of its own that runs ``code`` with ``arguments`` as sys.argv[1:] and can import what tests import."""
    # Its code may be a function of a test's: the kit and the folders beside it.
    paths = os.pathsep.join(str(folder) for folder in sorted(Path(__file__).parents[1].iterdir()) if folder.is_dir())
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def room(place: Path) -> Generator[Path]:
    """Memory where that can be had: thousands of flushes to a disk take minutes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else place) as folder:
        yield Path(folder)


def rot(file: Path) -> bytes:
    """Flip one bit as a disk does: size, times and inode stay. Gives back what stood there."""
    before, status = file.read_bytes(), file.stat()
    file.chmod(0o644)
    with file.open("r+b") as opened:
        opened.seek(len(before) // 2)
        opened.write(bytes([before[len(before) // 2] ^ 4]))
    file.chmod(status.st_mode & 0o777)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return before


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now
