"""What the tests of shared stores make and share."""

import os
from collections.abc import Callable
from pathlib import Path

from forge.store.store import Provenance

ENGINE_MADE = Provenance("tiny: engine", "Run", {"gpu": "sm_89"}, {})


def fill(out: Path) -> None:
    """A tree of every kind of thing that can be shared."""
    (out / "1" / "deep").mkdir(parents=True)
    (out / "empty").mkdir()
    (out / "weights.bin").write_bytes(bytes(range(256)) * 1024)
    (out / "1" / "deep" / "config.json").write_text("{}")
    (out / "1" / "none").touch()
    (out / "1" / "run").write_text("#!/bin/sh\n")
    (out / "1" / "run").chmod(0o755)
    (out / "inner").symlink_to("1/deep")


def large(size: int) -> Callable[[Path], object]:
    def write(out: Path) -> None:
        (out / "rank0.engine").write_bytes(os.urandom(size))

    return write
