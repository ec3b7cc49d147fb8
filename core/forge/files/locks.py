"""Whether the locks of a folder's filesystem hold anybody back: some of a network are granted to all who ask, or to nobody."""

import errno
import fcntl
import os
import tempfile
from functools import lru_cache
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def require(folder: Path) -> None:
    """OSError where two can hold one lock in ``folder``, or nobody can hold one: two builds would both begin."""
    device = os.stat(folder).st_dev
    try:
        _require(folder, device)
    except OSError as error:
        if error.errno not in _FULL:  # `cache gc`, which makes room, goes on where no file can be made
            raise


@lru_cache(maxsize=64)
def _require(folder: Path, _: int) -> None:
    # Both are open for writing: over NFS nothing else is locked for one alone.
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as one, Path(one.name).open("r+b") as other:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD or error.errno == errno.ENOSYS:  # without any flock, filelock makes its own kind of lock
                return
            raise OSError(error.errno, f"no lock can be had on this filesystem ({error.strerror})", str(folder)) from error
    raise OSError(errno.ENOLCK, "locks of this filesystem hold nobody back (a network's, mounted without locks?)", str(folder))
