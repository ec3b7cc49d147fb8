"""A forge process for tests to kill: runs one command in the plain image, or reaps without one.

Usage: docker_driver.py ADDRESS OUT [ARGV...]. With DRIVER_USER set to a number it acts as that user;
with DRIVER_WATCHED what it leaves is seen to as by a node of a cluster.
"""

import os
import sys
from pathlib import Path

from docker_fixture import environ, run_of
from forge.cluster.worker import watch
from forge.errors import ForgeError
from forge.machine.docker.containers import DockerContainers


def main(address: str, out: Path, argv: list[str]) -> int:
    containers = DockerContainers(environ(address))
    if "DRIVER_WATCHED" in os.environ:
        watch(Path("/"))
    if user := int(os.environ.get("DRIVER_USER", "0")):
        # What is imported late is imported now: the other user may not read this one's Python.
        containers.facts()
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    try:
        if argv:
            containers.run(run_of(out, *argv), lambda line: print(line, flush=True))
        else:
            print(*containers.reap())
    except ForgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
