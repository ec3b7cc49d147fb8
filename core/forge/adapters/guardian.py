"""``python -m forge.adapters.guardian MARKER STATE LOG``: waits until the forge that started it is gone, then ends its server.

forge holds the other end of standard input. However forge ends, SIGKILL included, the kernel closes that end, and a server that
was not meant to outlive it goes too, with its stubs, its shared memory and its state file.
"""

import sys
from pathlib import Path

from forge.adapters.processes import end
from forge.adapters.triton_log import served

PATIENCE = 12.0
"""Seconds between asking a server to finish and killing it; a little over the exit timeout it was started with."""


def main(marker: str, state: str, log: str) -> None:
    """Block until end of input, then end all that carries ``marker``."""
    sys.stdin.buffer.read()
    end(marker, PATIENCE, served(Path(log)))
    Path(state).unlink(missing_ok=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
