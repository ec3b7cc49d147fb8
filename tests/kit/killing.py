"""Kills a process at every instant of its work that Python can tell apart, to see what it leaves behind."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType


def _kill_at(instant: int, room: str) -> None:
    """From now on count what the room's functions call and return from, and die by SIGKILL at the given count."""
    seen = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal seen
        if frame.f_globals.get("__name__", "").startswith(room):
            if seen == instant:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.setprofile(count)


def at_every_instant(act: Callable[[], object], look: Callable[[int], object], *, room: str = "forge.", stride: int = 1) -> int:
    """Run ``act`` in a process killed at one instant, then ``look`` at what is left; on to the next until it lives.

    The number of instants, in all rooms or in the one named. Forks: to be called in a process of its own, with one thread.
    """
    for instant in range(0, 10**6, stride):
        pid = os.fork()
        if pid == 0:
            try:
                _kill_at(instant, room)
                act()
            except BaseException:  # noqa: BLE001 - a forked child must end here, whatever happened
                sys.setprofile(None)
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        look(instant)
        if os.WIFEXITED(status):
            if os.waitstatus_to_exitcode(status):
                raise AssertionError(f"instant {instant}: the work failed without being killed")
            return instant
    raise AssertionError("the work never ended")
