"""Runs a step's command on this machine, in the step's private environment."""

import os
import re
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from forge.adapters.processes import inherited
from forge.errors import StepError
from forge.ports import Job

_LAST = 20
"""Lines of a failed program's output that an error shows."""
_CONSTANT = re.compile(r"(?<![\w./-])/forge/([\w.-]+)")
"""A constant path inside a word: ``/forge/model``, ``--dir=/forge/model/x``, ``/forge/a:/forge/b``."""


class LocalExecutor:
    """The Executor of this machine: constant paths become real ones, ``python3`` is the environment's."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = inherited(environ)

    def run(self, job: Job, line: Callable[[str], None]) -> None:
        """Run to the end, each line of output told to ``line`` and all of it kept in ``job.log``.

        StepError when it cannot start, exits with anything but 0, or is killed. Nothing it started outlives the call.
        """
        argv = [_real(word, job.mounts) for word in job.command.argv]
        environ = self._environment(job)
        last: deque[str] = deque(maxlen=_LAST)
        with (
            tempfile.TemporaryDirectory(prefix="forge-run-") as scratch,
            job.log.open("wb") as log,
            _begin(argv, environ, scratch, job) as process,
        ):
            # The output ends when the last holder of the pipe ends: what a finished program left behind must not keep us.
            watch = threading.Thread(target=_sweep, args=(process,), daemon=True)
            watch.start()
            try:
                for raw in process.stdout or ():
                    log.write(raw)
                    text = raw.decode(errors="replace").rstrip("\r\n")
                    last.append(text)
                    line(text)
            finally:
                if process.poll() is None:
                    _kill(process.pid)
                watch.join()
        if process.returncode:
            raise StepError(
                "\n".join((f"{argv[0]} {_ending(process.returncode)}", *last)),
                where=str(job.log),
                hint="that file holds all of its output; mend what it names and build again, finished steps are kept",
            )

    def _environment(self, job: Job) -> dict[str, str]:
        environ = {**self._environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
        environ |= {name: _real(value, job.mounts) for name, value in job.command.env.items()}
        if private := job.mounts.get("environment"):
            environ["PATH"] = f"{private / 'bin'}:{environ.get('PATH', os.defpath)}"
        return environ


def _real(word: str, mounts: Mapping[str, Path]) -> str:
    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name not in mounts:
            raise StepError(
                f"a command names /forge/{name}, and the step has no such input",
                where=word,
                hint=f"it has: {', '.join(sorted(mounts))}; if a plugin made the command, report the plugin",
            )
        return str(mounts[name])

    return _CONSTANT.sub(replace, word)


def _begin(argv: list[str], environ: dict[str, str], folder: str, job: Job) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            env=environ,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise StepError(
            f"cannot start {argv[0]}: {error.strerror}",
            where=job.command.argv[0],
            hint="the program is looked for on PATH, the step's own environment first",
        ) from error


def _sweep(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    _kill(process.pid)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _ending(code: int) -> str:
    if code > 0:
        return f"exited with {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    killed = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{killed}"
