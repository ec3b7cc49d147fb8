"""forge's commands, each in a process of its own that is forked from one which has imported forge: campaigns run thousands."""

import atexit
import importlib
import os
import pkgutil
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import forge
from forge.cli import main

_ELSEWHERE = ("forge.twin", "forge.vllm", "forge.repository.skeletons", "forge.testing", "forge.bench", "forge.serve.openai")
"""What runs in other programs, or wants an extra."""


def warm() -> None:
    """Import what commands import."""
    for module in pkgutil.walk_packages(forge.__path__, "forge."):
        if not module.name.startswith(_ELSEWHERE) and not module.name.endswith(("__main__", "transformers_script")):
            importlib.import_module(module.name)


class Forked:
    """One command, the leader of a session of its own; what it says goes to the file ``said``."""

    def __init__(self, words: Sequence[str], home: Path, folder: Path, said: Path) -> None:
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(words, home, folder, said)
        self._handle = os.pidfd_open(self.pid)
        self.code: int | None = None

    def wait(self, seconds: float) -> int | None:
        """Its exit code, negative where a signal ended it; None where it still runs after so many seconds."""
        if self.code is None and select.select([self._handle], [], [], seconds)[0]:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._handle)
        return self.code


def _run(words: Sequence[str], home: Path, folder: Path, said: Path) -> None:
    """In the child: never returns, and runs nothing of what its parent wanted to do in the end."""
    code = 1
    try:
        atexit._clear()  # pyright: ignore[reportPrivateUsage]
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever a campaign makes of it
        os.chdir(folder)
        for number, target in enumerate((os.open(os.devnull, os.O_RDONLY), said_to := _written(said), said_to)):
            os.dup2(target, number)
        (folder / "tmp").mkdir(exist_ok=True)
        tempfile.tempdir = None  # the parent has asked for its own
        os.environ.update(FORGE_HOME=str(home), NO_COLOR="1", TMPDIR=str(folder / "tmp"))
        sys.argv = ["forge", *words]
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - as Python itself would say it
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _written(said: Path) -> int:
    return os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
