"""Runs beside a worker, and after it: removes the containers that it left, however it ended.

    python afterwards.py PID

The worker holds the other end of standard input, and the kernel closes it when that process is gone, SIGKILL included.
Containers carry their maker's name (``forge.machine.docker.owners``): those of dead makers on this machine are what is removed.
"""

import os
import sys
import time
from contextlib import suppress

from forge.errors import ForgeError
from forge.machine.docker.containers import DockerContainers
from forge.machine.processes import started

PATIENCE = 10.0
"""Seconds for a process that is being ended to be gone."""


def main(pid: int) -> None:
    """Block until the worker is gone, then look after its containers."""
    os.read(0, 1)
    until = time.monotonic() + PATIENCE
    while started(pid) is not None and time.monotonic() < until:
        time.sleep(0.1)
    with suppress(ForgeError):  # no daemon any more: then no container either
        DockerContainers(dict(os.environ)).reap()


if __name__ == "__main__":
    main(int(sys.argv[1]))
