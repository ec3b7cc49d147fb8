"""Starts, watches and stops Triton on this machine."""

import http.client
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from filelock import Timeout

from forge.adapters import processes, triton_log
from forge.adapters.guardian import PATIENCE
from forge.adapters.linking import read_layout, require_libraries
from forge.adapters.servers import Guard, States
from forge.errors import HostError, ServerError
from forge.model import Command
from forge.ports import Launch, Ports, Running

EXIT_TIMEOUT = 10
"""Seconds that Triton gives running requests when it is asked to finish."""
_BACKENDS = ("python", "tensorrtllm")
_ABORTED = 3.0
"""Seconds for a server that never became ready to finish by itself."""


class TritonServer:
    """The Server of this machine. ``home`` keeps a state file and a log for each; ``patience`` is seconds to become ready.

    A server that is not detached ends with the process that started it, through its guardian.
    """

    def __init__(self, home: Path, environ: Mapping[str, str], patience: float = 600.0) -> None:
        self._states = States(home / "servers")
        self._environ = environ
        self._patience = patience
        self._guards: dict[str, Guard] = {}

    def command(self, launch: Launch) -> Command:
        """The command line and environment of ``start``; nothing else of this process's environment reaches the server."""
        layout = read_layout(launch.environment, launch.triton)
        ports, marker = launch.ports, self._states.marker(launch.repository)
        argv = [
            str(layout.server),
            f"--model-repository={launch.repository}",
            f"--backend-directory={launch.backends}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in launch.models),
            *_addresses(ports),
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={EXIT_TIMEOUT}",
            "--allow-gpu-metrics=false",
            *(f"--backend-config={backend},shm-region-prefix-name={marker}" for backend in _BACKENDS),
        ]
        environ = processes.inherited(self._environ)
        # The stub takes its packages from the first python3 on PATH.
        environ["PATH"] = f"{launch.environment / 'bin'}:{environ.get('PATH', os.defpath)}"
        environ["LD_LIBRARY_PATH"] = layout.library_path(self._environ.get("LD_LIBRARY_PATH", ""))
        environ[processes.MARKER] = marker
        return Command(tuple(argv), environ)

    def start(self, launch: Launch, line: Callable[[str], None]) -> Running:
        """Start and wait until every model is ready, each line of the log told to ``line``.

        HostError for a Triton that cannot run here; ServerError for a taken port, a server that is there already, and models
        that do not load. After an error, or Ctrl-C, nothing is left running.
        """
        command = self.command(launch)
        layout = read_layout(launch.environment, launch.triton)
        stub = launch.backends / "python" / "triton_python_backend_stub"
        _require_executable(layout.server, stub)
        require_libraries((layout.server, stub), command.env["LD_LIBRARY_PATH"])
        _require_models(launch)
        try:
            with self._states.lock(launch.repository):
                self._require_room(launch)
                return self._started(launch, command, line)
        except Timeout as error:
            raise ServerError(
                "another forge is starting a server on this repository just now",
                where=str(launch.repository),
                hint="wait for it; `forge status` shows it when it is ready",
            ) from error

    def running(self) -> tuple[Running, ...]:
        """The servers that are alive; what dead ones left behind is cleared away."""
        return self._states.living()

    def alive(self, running: Running) -> bool:
        """Whether the server's process is still there."""
        processes.reap(running.pid)
        return processes.started(running.pid) == running.started

    def stop(self, running: Running) -> None:
        """SIGINT, wait, then SIGKILL to all that it started; its shared memory and its state file go too."""
        self._finish(running, PATIENCE)

    def _finish(self, running: Running, patience: float) -> None:
        processes.end(running.shared_memory, patience, triton_log.served(Path(running.log)))
        self._states.forget(Path(running.repository))
        if guard := self._guards.pop(running.shared_memory, None):
            guard.dismiss()

    def _require_room(self, launch: Launch) -> None:
        for other in self._states.living(holding=launch.repository):
            if other.repository == str(launch.repository):
                raise ServerError(
                    f"a server runs on this repository already (process {other.pid}, gRPC port {other.ports.grpc})",
                    where=other.repository,
                    hint="use it, or stop it first: `forge stop`",
                )
        ports = launch.ports
        wanted = {"http": ports.http, "grpc": ports.grpc, "metrics": ports.metrics}
        for name, port in wanted.items():
            if list(wanted.values()).count(port) > 1:
                raise ServerError(f"port {port} is asked for twice", hint="http, grpc and metrics each need their own")
            if not processes.free(ports.host, port):
                raise ServerError(
                    f"port {port} is taken{self._holder(port)}",
                    where=f"{ports.host}:{port}",
                    hint=f"free it, or choose another with --{name}-port",
                )

    def _holder(self, port: int) -> str:
        for other in self._states.living():
            if port in (other.ports.http, other.ports.grpc, other.ports.metrics):
                return f" by forge's own server on {other.repository} (process {other.pid}; `forge stop` ends it)"
        pid = processes.listener(port)
        return f" by process {pid} ({processes.program(pid)})" if pid else ""

    def _started(self, launch: Launch, command: Command, line: Callable[[str], None]) -> Running:
        marker = command.env[processes.MARKER]
        log = self._states.log(launch.repository)
        processes.end(marker, 0.0, triton_log.served(log))  # a predecessor whose forge and guardian were both killed
        running = Running(str(launch.repository), 0, 0.0, launch.ports, launch.models, str(log), marker)
        self._states.keep(running)
        try:
            if not launch.detach:
                self._guards[marker] = Guard.post(marker, self._states.file(launch.repository), log)
            pid = _spawn(command, log)
            running = replace(running, pid=pid, started=processes.started(pid) or 0.0)
            self._states.keep(running)
            self._await(running, line)
        except BaseException:  # Ctrl-C too: whatever ends the start, no process is left
            self._finish(running, _ABORTED)
            raise
        return running

    def _await(self, running: Running, line: Callable[[str], None]) -> None:
        """Return when every model is ready; ServerError when the server ended, or time did."""
        deadline = time.monotonic() + self._patience
        missing = list(running.models)
        with Path(running.log).open(encoding="utf-8", errors="replace") as log:
            while missing:
                alive = self.alive(running)
                for text in log:
                    line(text.rstrip("\n"))
                if not alive:
                    raise _not_loaded(running, missing)
                missing = [model for model in missing if not _ready(running.ports, model)]
                if missing and time.monotonic() > deadline:
                    raise _not_loaded(running, missing)
                time.sleep(0.03 if missing else 0)


def _addresses(ports: Ports) -> tuple[str, ...]:
    """All three: Triton listens on every interface unless told otherwise."""
    named = {"http": ports.http, "grpc": ports.grpc, "metrics": ports.metrics}
    return tuple(
        option for name, port in named.items() for option in (f"--{name}-address={ports.host}", f"--{name}-port={port}")
    )


def _spawn(command: Command, log: Path) -> int:
    """Start in a session of its own; a terminal's Ctrl-C reaches forge, which then stops the server in order."""
    written = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), written, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    signals = (signal.SIGINT, signal.SIGTERM)  # a shell's background job has SIGINT ignored, and children inherit that
    try:
        return os.posix_spawn(
            command.argv[0], command.argv, dict(command.env), file_actions=actions, setsid=True, setsigdef=signals
        )
    except OSError as error:
        raise HostError(f"Triton cannot be started: {error.strerror}", where=command.argv[0]) from error


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


def _require_models(launch: Launch) -> None:
    for model in launch.models:
        if not (launch.repository / model / "config.pbtxt").is_file():
            raise ServerError(
                f"there is no model {model!r} in the repository",
                where=str(launch.repository),
                hint="build it again: `forge build RECIPE`",
            )


def _ready(ports: Ports, model: str) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ports.host, ports.host)  # noqa: S104  # asked for by the caller
    connection = http.client.HTTPConnection(host, ports.http, timeout=5)
    try:
        connection.request("GET", f"/v2/models/{model}/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _not_loaded(running: Running, missing: list[str]) -> ServerError:
    """Which model is to blame and what the log says of it."""
    text = ""
    with suppress(OSError):
        text = Path(running.log).read_text(encoding="utf-8", errors="replace")
    failed = triton_log.failures(text)
    hint = f"the whole log: {running.log}"
    if not failed:
        names = ", ".join(missing)
        what = f"Triton did not become ready (missing: {names})\n{triton_log.part(text)}"
        return ServerError(what, where=running.repository, hint=hint)
    model, why = next(iter(failed.items()))
    others = f"\nnot loaded because of it, or too: {', '.join(list(failed)[1:])}" if len(failed) > 1 else ""
    what = f"model {model!r} did not load: {why}{others}\nits part of the log:\n{triton_log.part(text, model)}"
    return ServerError(what, where=running.repository, hint=hint)
