"""What the store's tests make: provenances, small trees, and child processes of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
