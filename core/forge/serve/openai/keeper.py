"""``python -m forge.serve.openai.keeper STATE ARGV...``: keeps a program up beside the server of a state file, and ends it with
that server. One that died and that somebody starts again is there all the time.

The program has the keeper's pipe as standard input and ends with it, however the keeper ends. One that dies is started again,
until it does so in quick succession.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from forge.machine.processes import started

_LOOK = 0.2
_ENDING = 8.0
"""Seconds for the program to finish what is under way."""
_QUICK, _TRIES = 10.0, 5
"""A program that dies so soon after its start, so often in a row, is given up."""


class Keeper:
    """Holds ``argv`` up while the server of ``state`` is there."""

    def __init__(self, state: Path, argv: list[str]) -> None:
        self._state = state
        self._argv = argv
        self._told = False

    def keep(self) -> int:
        """Return when the server has gone, when told to end, or with the program's exit status when it is given up."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._tell)
        failures = 0
        while True:
            began = time.monotonic()
            status = self._once()
            if self._over():
                return 0
            failures = failures + 1 if time.monotonic() - began < _QUICK else 1
            if failures >= _TRIES:
                return status
            print(f"the program ended with {status}; it is started again", file=sys.stderr, flush=True)  # noqa: T201
            time.sleep(_LOOK)

    def _once(self) -> int:
        with subprocess.Popen(self._argv, stdin=subprocess.PIPE) as program:
            while program.poll() is None and not self._over():
                time.sleep(_LOOK)
            if program.poll() is None:
                program.terminate()
                try:
                    program.wait(_ENDING)
                except subprocess.TimeoutExpired:
                    program.kill()
            return program.wait()

    def _over(self) -> bool:
        return self._told or not _is_there(self._state)

    def _tell(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # as signal calls it
        self._told = True


def _is_there(state: Path) -> bool:
    """Whether a server's process, or the one that starts it again, lives; one that cannot be seen from here does."""
    try:
        said = json.loads(state.read_bytes())
    except (OSError, ValueError):
        return False
    pairs = ((said["pid"], said["started"]), (said.get("vigil"), said.get("vigil_started")))  # an older forge notes none
    return bool(said["pid"] and not said["started"]) or any(pid and started(pid) == ticks for pid, ticks in pairs)


if __name__ == "__main__":
    sys.exit(Keeper(Path(sys.argv[1]), sys.argv[2:]).keep())
