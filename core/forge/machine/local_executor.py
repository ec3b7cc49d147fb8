"""Runs a step's command on this machine, in the step's private environment."""

import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from forge.diagnoses import DIAGNOSES, Diagnosis
from forge.errors import StepError
from forge.machine.bonds import bound, temporary
from forge.machine.containers import Job
from forge.machine.interrupt import Halt
from forge.machine.processes import inherited, kill_group
from forge.machine.transcript import Transcript

_CONSTANT = re.compile(r"(?<![\w./-])/forge/([\w.-]+)")
"""A constant path inside a word: ``/forge/model``, ``--dir=/forge/model/x``, ``/forge/a:/forge/b``."""


class LocalExecutor:
    """The Executor of this machine: constant paths become real ones, ``python3`` is the environment's."""

    def __init__(
        self,
        environ: Mapping[str, str],
        halt: Halt | None = None,
        table: Iterable[Diagnosis] = DIAGNOSES,
        more: Mapping[str, str] | None = None,
    ) -> None:
        """``table`` is what failures are looked up in; ``more`` are variables that every command has besides."""
        self._environ = {**inherited(environ), **(more or {})}
        self._halt = halt or Halt()
        self._table = table

    def run(self, job: Job, line: Callable[[str], None]) -> None:
        """Run to the end, each line of output told to ``line`` and all of it kept in ``job.log``.

        StepError when it cannot start, exits with anything but 0, is killed, or breaks its promises; HostError where the table
        says that it is the machine's fault. Nothing it started outlives the call.
        """
        argv = [_real(word, job.mounts) for word in job.command.argv]
        environ = self._environment(job)
        with (
            tempfile.TemporaryDirectory(prefix="run-", dir=temporary()) as scratch,
            Transcript(job.log, line) as log,
            _begin(argv, environ, scratch, job) as process,
        ):
            # The output ends when the last holder of the pipe ends: what a finished program left behind must not keep us.
            watch = threading.Thread(target=_sweep, args=(process,), daemon=True)
            watch.start()
            try:
                with self._halt.ending(lambda: kill_group(process.pid)):
                    for raw in process.stdout or ():
                        log.write(raw)
            finally:
                if process.poll() is None:
                    kill_group(process.pid)
                watch.join()
        if process.returncode:
            raise log.failure(f"{argv[0]} {_ending(process.returncode)}", self._table)
        if job.promised:
            log.require_promised(argv[0], job.mounts["out"], job.promised, self._table)

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
            env=bound(environ),
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
    kill_group(process.pid)


def _ending(code: int) -> str:
    if code > 0:
        return f"exited with {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    killed = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{killed}"
