"""A process that hangs in the handler of its own fault, as Triton's does where the heap broke; or one that takes no signals."""

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

_HANDLED = """
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None)
libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.signal(signal.SIGABRT, ctypes.cast(libc.pause, ctypes.c_void_p))
print(flush=True)
if sys.argv[1] == "hangs":
    os.kill(os.getpid(), signal.SIGABRT)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
time.sleep(600)
"""


@contextmanager
def in_fault(*, hangs: bool = True) -> Generator[int]:
    """Its pid; the handler is one of C's, which runs in the midst of a thread."""
    with subprocess.Popen((sys.executable, "-c", _HANDLED, "hangs" if hangs else "lives"), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()
