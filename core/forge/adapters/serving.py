"""The Server port: one door to every Triton of this workshop, as a process of this machine or in a container."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from filelock import Timeout

from forge.adapters import processes
from forge.adapters.guardian import PATIENCE
from forge.adapters.readiness import Watch, misled, require_models
from forge.adapters.servers import Guard, States
from forge.adapters.triton import TritonProcess
from forge.errors import ForgeError, ServerError
from forge.model import Command
from forge.ports import Launch, Ports, Running

_ABORTED = 3.0
"""Seconds for a server that never became ready to finish by itself."""


class Way(Protocol):
    """One way to run a Triton. ``pause`` is how many seconds to wait between two looks whether it is ready."""

    pause: float

    def command(self, launch: Launch, marker: str) -> Command: ...
    def inside(self, launch: Launch) -> Ports: ...
    def check(self, launch: Launch) -> None: ...
    def guarded(self) -> dict[str, str]: ...
    def begin(self, launch: Launch, running: Running) -> Running: ...
    def alive(self, running: Running) -> bool: ...
    def ended(self, running: Running) -> str: ...
    def end(self, running: Running, patience: float) -> None: ...


class Servers:
    """The servers of one home. It keeps a state file and a log for each; ``patience`` is seconds to become ready.

    A server that is not detached ends with the process that started it, through its guardian.
    """

    def __init__(self, home: Path, environ: Mapping[str, str], patience: float = 600.0) -> None:
        self._states = States(home / "servers")
        self._environ = environ
        self._patience = patience
        self._guards: dict[str, Guard] = {}

    def _way(self, container: str) -> Way:
        """The way of a launch by its image, of a server by its container."""
        if not container:
            return TritonProcess(self._environ)
        from forge.adapters.docker_serving import TritonContainer

        return TritonContainer(self._environ)

    def command(self, launch: Launch) -> Command:
        """The command line and environment of ``start``; for a container, ``docker run`` as a person would type it."""
        return self._way(launch.image).command(launch, self._states.marker(launch.repository))

    def start(self, launch: Launch, line: Callable[[str], None]) -> Running:
        """Start and wait until every model is ready, each line of the log told to ``line``.

        HostError for a Triton that cannot run here; ServerError for a taken port, a server that is there already, and models
        that do not load. After an error, or Ctrl-C, nothing is left running.
        """
        way = self._way(launch.image)
        way.check(launch)
        require_models(launch)
        for model in misled(launch, way.inside(launch)):
            line(f"{model} asks its own server at localhost:8001, as this TensorRT-LLM's bls does: {_MOVE}")
        try:
            with self._states.lock(launch.repository):
                self._require_room(launch)
                return self._started(way, launch, line)
        except Timeout as error:
            raise ServerError(
                "another forge is starting a server on this repository just now",
                where=str(launch.repository),
                hint="wait for it; `forge status` shows it when it is ready",
            ) from error

    def running(self) -> tuple[Running, ...]:
        """The servers that are alive; what dead ones left behind is cleared away."""
        return self._living()

    def alive(self, running: Running) -> bool:
        """Whether the server is still there."""
        return self._way(running.container).alive(running)

    def stop(self, running: Running) -> None:
        """Ask it to finish, wait, then kill all that it started; what it leaves and its state file go too."""
        self._finish(running, PATIENCE)

    def _living(self, holding: Path | None = None) -> tuple[Running, ...]:
        """Those that are alive. The dead are cleared away, but for those that another forge is just starting.

        ``holding`` is the repository whose lock the caller has.
        """
        found: list[Running] = []
        for running in self._states.kept():
            if self.alive(running):
                found.append(running)
            elif running.repository == str(holding):
                self._bury(running)
            else:
                with suppress(Timeout), self._states.lock(Path(running.repository)):
                    if running in self._states.kept():
                        self._bury(running)
        return tuple(found)

    def _bury(self, running: Running) -> None:
        # Nothing of it runs: what a container engine that is away still holds of it can wait until that is back.
        with suppress(ForgeError):
            self._finish(running, PATIENCE)

    def _finish(self, running: Running, patience: float) -> None:
        self._way(running.container).end(running, patience)
        self._states.forget(Path(running.repository))
        if guard := self._guards.pop(running.shared_memory, None):
            guard.dismiss()

    def _require_room(self, launch: Launch) -> None:
        living = self._living(holding=launch.repository)
        for other in living:
            if other.repository == str(launch.repository):
                raise ServerError(
                    f"a server runs on this repository already ({_named(other)}, gRPC port {other.ports.grpc})",
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
                    f"port {port} is taken{_holder(port, living)}",
                    where=f"{ports.host}:{port}",
                    hint=f"free it, or choose another with --{name}-port",
                )

    def _started(self, way: Way, launch: Launch, line: Callable[[str], None]) -> Running:
        marker, log = self._states.marker(launch.repository), self._states.log(launch.repository)
        running = Running(str(launch.repository), 0, 0.0, launch.ports, launch.models, str(log), marker)
        running = replace(running, container=marker if launch.image else "")
        self._states.keep(running)
        try:
            if not launch.detach:
                self._guards[marker] = Guard.post(running, self._states.file(launch.repository), way.guarded())
            running = way.begin(launch, running)
            self._states.keep(running)
            begun = running
            Watch(running, lambda: way.alive(begun), lambda: way.ended(begun), way.pause).await_models(self._patience, line)
        except BaseException:  # Ctrl-C too: whatever ends the start, nothing is left running
            with suppress(ForgeError):  # what kept it from starting says more than that it cannot be ended either
                self._finish(running, _ABORTED)
            raise
        return running


_MOVE = "every request to it would fail or ask a stranger; serve with --grpc-port 8001, on this machine alone"


def _named(running: Running) -> str:
    return f"container {running.container}" if running.container else f"process {running.pid}"


def _holder(port: int, living: tuple[Running, ...]) -> str:
    for other in living:
        if port in (other.ports.http, other.ports.grpc, other.ports.metrics):
            return f" by forge's own server on {other.repository} ({_named(other)}; `forge stop` ends it)"
    pid = processes.listener(port)
    return f" by process {pid} ({processes.program(pid)})" if pid else ""
