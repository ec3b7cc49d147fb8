"""Runs apart from forge: when the forge that started it is gone without a word, ends what that one had started, and removes the
folder of its temporary files.

    python reaper.py NAME=VALUE FOLDER

forge holds the other end of standard input, and the kernel closes it however forge ends, SIGKILL included. What it started has
NAME=VALUE in its environment, and so has all that those started in turn, whatever their parent, group or session.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

PAUSE = 0.2
"""Seconds between two looks: a program can be between fork and exec, where it does not carry the mark yet."""


def main(mark: str, folder: str) -> None:
    """Block until end of input; a byte on it says that forge has ended well and removed ``folder`` (empty: it has none)."""
    if os.read(0, 1):
        return
    quiet = 0
    while quiet < 2:
        found = tuple(_carriers(mark.encode()))
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        quiet = 0 if found else quiet + 1
        time.sleep(PAUSE)
    if folder:
        import shutil  # not before it is needed: every forge that starts a program starts this one

        shutil.rmtree(folder, ignore_errors=True)


def _carriers(mark: bytes) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/environ", "rb") as environ:  # pathlib takes as long as all else
                if mark in environ.read().split(b"\0"):
                    yield int(name)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a service manager sends them to all that there is
        signal.signal(number, signal.SIG_IGN)
    main(*sys.argv[1:])
