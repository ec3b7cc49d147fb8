"""Triton as a process of this machine: the twin's in its private environment, or one that is installed here."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from forge.errors import HostError, ServerError
from forge.files.interpreter import own_python
from forge.machine import processes, stillness, unlisted
from forge.machine.libraries import read_layout, require_libraries
from forge.schema.values import Command, Ports
from forge.schema.vllm_environment import PYTHON as VLLM
from forge.serve import log as triton_log
from forge.serve.arguments import ServerPlace, arguments, variables
from forge.serve.server_types import Launch, Running
from forge.serve.state import key_file, make_private

INSTALLED = "/opt/tritonserver"
"""Where NVIDIA's images have Triton; its own backend folder is the one that it looks in by itself."""
_BEHIND = 5
"""By how much the twin is nicer (nice(1)) than who starts it."""


class TritonProcess:
    """A way to run a Triton (see ``forge.serve.server_types.Way``)."""

    pause = 0.03

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def command(self, launch: Launch, running: Running) -> Command:
        """The command line and environment; nothing else of this process's environment reaches the server."""
        if launch.environment is None or launch.backends is None:
            return self._installed(launch, running)
        layout, marker = read_layout(launch.environment, launch.triton), running.shared_memory
        before = _before(launch, running)
        place = ServerPlace(
            str(layout.server), _places(launch), launch.ports, marker, str(launch.backends), before=before, nonce=running.nonce
        )
        environ = processes.inherited(self._environ)
        # The stub takes its packages from the first python3 on PATH.
        environ["PATH"] = f"{launch.environment / 'bin'}:{environ.get('PATH', os.defpath)}"
        theirs = self._environ.get("LD_LIBRARY_PATH", "")
        environ["LD_LIBRARY_PATH"] = layout.library_path(theirs)
        environ[processes.MARKER] = marker
        if launch.vllm:
            environ |= processes.vllm(self._environ) | {VLLM: str(launch.vllm / "bin" / "python3")}
            # Clusters mount the driver where only this variable says: behind Triton's own, for vLLM to find.
            environ["LD_LIBRARY_PATH"] = ":".join(filter(None, (environ["LD_LIBRARY_PATH"], theirs)))
        return Command(arguments(launch, place), environ)

    def _installed(self, launch: Launch, running: Running) -> Command:
        """A Triton with backends and packages of its own, found as whoever calls forge would find them."""
        if not launch.triton:
            raise ServerError("there is no Triton to serve it with", where=str(launch.repository), hint="`forge build RECIPE`")
        backends = "" if launch.triton == INSTALLED else f"{launch.triton}/backends"
        program, gpus = f"{launch.triton}/bin/tritonserver", self.gpus()
        marker = running.shared_memory
        place = ServerPlace(
            program, _places(launch), launch.ports, marker, backends, gpus, _before(launch, running), running.nonce
        )
        environ = {**processes.inherited(self._environ), **processes.nvidia(self._environ), "PATH": _path(self._environ)}
        return Command(arguments(launch, place), {**environ, **variables(launch), processes.MARKER: marker})

    def inside(self, launch: Launch) -> Ports:
        """The addresses as the server sees them."""
        return launch.ports

    def check(self, launch: Launch) -> None:
        """HostError for a Triton that cannot run here."""
        if launch.environment is None or launch.backends is None:
            server = Path(launch.triton) / "bin" / "tritonserver"
            _require_executable(server)
            require_libraries((server,), self._environ.get("LD_LIBRARY_PATH", ""))
            return
        layout = read_layout(launch.environment, launch.triton)
        stub = launch.backends / "python" / "triton_python_backend_stub"
        _require_executable(layout.server, stub)
        require_libraries((layout.server, stub), layout.library_path(self._environ.get("LD_LIBRARY_PATH", "")))

    def gpus(self) -> int:
        """How many GPUs are here."""
        from forge.machine.probe import ThisMachine

        return len(ThisMachine(self._environ).gpus())

    def guarded(self) -> dict[str, str]:
        """The environment in which a guardian can end the server."""
        return processes.inherited(self._environ)

    def begin(self, launch: Launch, running: Running) -> Running:
        """Start it, after whatever a predecessor left that died, or whose forge and guardian were both killed."""
        log = Path(running.log)
        processes.end(running.shared_memory, 0.0, triton_log.served(log), (running.vigil, running.front))
        make_private(log)
        pid = _spawn(self.command(launch, running), log)
        if launch.environment and not launch.vllm:
            _stand_behind(pid)
        return replace(running, pid=pid, started=processes.started(pid) or 0.0, inode=log.stat().st_ino)

    def furnish(self, launch: Launch, running: Running) -> None:
        """Nothing: it sees its repositories where they stand."""

    def alive(self, running: Running) -> bool:
        """Whether the server's process is still there."""
        return bool(running.pid) and processes.started(running.pid) == running.started

    def ended(self, running: Running) -> str:  # noqa: ARG002  # nobody waits for it but the one who looked whether it lives
        """How it ended: the log says it."""
        return ""

    def died(self, running: Running) -> str:
        """Of what it died, as its parent or its log knows it; empty where it was asked to end."""
        return triton_log.cause(processes.status(running.pid, running.started), triton_log.written(running))

    def stands(self, running: Running) -> bool:
        """Whether somebody has stopped it, who may have it go on."""
        return bool(running.started) and stillness.stands(running.pid)

    def kill(self, running: Running) -> None:
        """End its process alone, without a word."""
        processes.kill(running.pid, running.started)

    def end(self, running: Running, patience: float) -> None:
        """SIGINT, ``patience`` seconds, then SIGKILL to all that it started; its shared memory goes too."""
        processes.end(running.shared_memory, patience, triton_log.served(triton_log.written(running)))


def _path(environ: Mapping[str, str]) -> str:
    """PATH without the virtual or conda environment in which forge was started.

    The stubs of Triton's Python models take their packages from the first python3 on PATH, and forge's own environment has none
    of theirs. An environment that holds TensorRT-LLM stays: NVIDIA's images from 26.03 on have it in one.
    """
    path = environ.get("PATH", os.defpath)
    active = [Path(environ[name]) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if environ.get(name)]
    foreign = {folder / "bin" for folder in active if not any(folder.glob("lib/python3*/site-packages/tensorrt_llm"))}
    return os.pathsep.join(word for word in path.split(os.pathsep) if Path(word or ".") not in foreign)


def _before(launch: Launch, running: Running) -> tuple[str, ...]:
    shown = (unlisted.ASKED_TO_SHOW,) if launch.ports.exposed else ()
    return (own_python(), "-I", "-S", unlisted.__file__, *shown, str(key_file(running)))


def _places(launch: Launch) -> tuple[str, ...]:
    return tuple(map(str, launch.repositories))


def _spawn(command: Command, log: Path) -> int:
    """Start it, found as a shell would find it in the environment that it gets."""
    program = shutil.which(command.argv[0], path=command.env.get("PATH", os.defpath)) or command.argv[0]
    try:
        return processes.detached(command.argv, command.env, log, program)
    except OSError as error:
        raise HostError(f"Triton cannot be started: {error.strerror}", where=command.argv[0]) from error


def _stand_behind(pid: int) -> None:
    """The twin computes with the processors that also answer for it: whoever asks or speaks beside it goes first.

    Where the kernel has a group for each session, that group's nice is what others feel (autogroup, sched(7)).
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PGRP, pid, min(19, os.getpriority(os.PRIO_PROCESS, pid) + _BEHIND))
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(f"{_BEHIND}", encoding="ascii")


def _require_executable(*programs: Path) -> None:
    for program in programs:
        if not program.is_file():
            raise HostError("a part of Triton is missing", where=str(program), hint="`forge cache verify`, then build again")
        if not os.access(program, os.X_OK):
            raise HostError(
                "this program is not executable",
                where=str(program),
                hint="was the store copied without its modes, or is it on a file system mounted noexec?",
            )
