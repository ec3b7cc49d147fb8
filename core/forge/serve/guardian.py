"""``python -m forge.serve.guardian MARKER STATE LOG CONTAINER ID``: when the forge that started it is gone, ends its server.

forge holds the other end of standard input. However forge ends, SIGKILL included, the kernel closes that end, and a server that
was not meant to outlive it goes too, with its stubs, its shared memory and its state file. CONTAINER is empty for a process.
A server that somebody has started there since, which has another ID, is none of its business.
"""

import json
import os
import sys
import time
from pathlib import Path

from forge.errors import ForgeError
from forge.machine.processes import end
from forge.serve.log import served

PATIENCE = 12.0
"""Seconds between asking a server to finish and killing it; a little over the exit timeout it was started with."""
_TRIES, _BETWEEN = 30, 2.0
_STARTING = 1.0
"""Seconds in which a container that forge was just starting when it died can still come up."""


def main(marker: str, state: str, log: str, container: str, nonce: str) -> None:
    """Block until end of input, then end all that carries ``marker``, or the container; nothing of a server started since."""
    if sys.stdin.buffer.read() or _another(Path(state), nonce):
        return
    if not container:
        end(marker, PATIENCE, served(Path(log)))
    else:
        end(marker, 0.0, lambda: True)  # what stands beside it on this machine
        if not _ended(container, Path(log)):
            return  # its owner's label has the next forge remove it
    Path(state).unlink(missing_ok=True)
    for secret in (".key", ".openai.key"):
        Path(state).with_suffix(secret).unlink(missing_ok=True)


def _another(state: Path, nonce: str) -> bool:
    try:
        return str(json.loads(state.read_bytes())["nonce"]) != nonce
    except (OSError, ValueError, LookupError):
        return False


def _ended(container: str, log: Path) -> bool:
    """End a container; a daemon that is away is given a minute to come back."""
    from forge.serve.container import end_container

    for _ in range(_TRIES):
        try:
            end_container(os.environ, container, PATIENCE, served(log))
            time.sleep(_STARTING)
            end_container(os.environ, container, 0.0, served(log))
        except ForgeError:
            time.sleep(_BETWEEN)
        else:
            return True
    return False


if __name__ == "__main__":
    main(*sys.argv[1:6])
