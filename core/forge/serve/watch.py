"""A process that looks after a server's models: started beside it, ended with it."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import forge
from forge.machine import processes
from forge.serve.types import Running

SUFFIX = ".watch.log"
"""Of its log, beside the server's."""


def begin(running: Running, home: Path, environ: Mapping[str, str], *, restart: bool, scrub: float) -> int:
    """Start ``python -m forge.api.vigil``; its pid. ``environ`` is what a guardian needs to reach the server."""
    wishes = ("restart" if restart else "leave", str(scrub))
    written = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    return os.posix_spawn(
        sys.executable,
        (sys.executable, "-P", "-m", "forge.api.vigil", str(home), running.shared_memory, *wishes),
        {**environ, "PYTHONPATH": str(Path(forge.__file__).parents[1]), processes.MARKER: running.shared_memory},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(Path(running.log).with_suffix(SUFFIX)), written, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=(signal.SIGINT, signal.SIGTERM),
    )
