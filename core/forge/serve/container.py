"""Triton in a container of the image that built its models."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from forge.diagnoses import DIAGNOSES
from forge.errors import ForgeError, HostError
from forge.machine import processes, stillness, unlisted
from forge.machine.docker import owners
from forge.machine.docker.container_run import Inspected, Runs, State
from forge.machine.docker.daemon import Api, Daemon, network, ours
from forge.machine.docker.images import Image
from forge.machine.probe import ThisMachine
from forge.schema.values import Command, Ports
from forge.serve.arguments import ServerPlace, arguments, variables
from forge.serve.container_options import KEY, PUBLISHED, REPOSITORY, UNLISTED, Box, configuration, lay_view, line, places
from forge.serve.log import cause, served, written
from forge.serve.server_types import Launch, Running
from forge.serve.state import VIEW, key_file, make_private

_MOMENT = 1.0
_KILLED = 137
_SHELL = 128
"""A shell, and Docker, add the number of a signal to it."""
_REACHING = ("DOCKER_", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR")
"""Variables by which a Docker daemon is found."""


_LATE = 10.0
"""Seconds that the daemon has to notice that a container's process is gone: until then its exit code is 0."""


class TritonContainer:
    """A way to run a Triton (see ``forge.serve.server_types.Way``)."""

    pause = 0.1

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._daemon = Daemon(environ)

    def command(self, launch: Launch, running: Running) -> Command:
        """``docker run`` with all that ``begin`` would ask of the daemon, but for what only forge makes use of."""
        return Command(line(self._box(launch, running, self._shares_network(launch))))

    def inside(self, launch: Launch) -> Ports:
        """The addresses as the server sees them: its container's own where those can be published."""
        return launch.ports if self._shares_network(launch) else PUBLISHED

    def check(self, launch: Launch) -> None:
        """HostError where no daemon answers or the image is not held."""
        with self._daemon.connected() as api:
            _entrypoint(api, launch.image)

    def gpus(self) -> int:
        """How many GPUs its daemon has, as far as this machine knows: 0 where that is another machine's."""
        return len(ThisMachine(self._environ).gpus()) if self._daemon.is_here() else 0

    def guarded(self) -> dict[str, str]:
        """The environment in which a guardian can end the server."""
        found = {name: value for name, value in self._environ.items() if name.startswith(_REACHING)}
        return {**processes.inherited(self._environ), **found}

    def begin(self, launch: Launch, running: Running) -> Running:
        """Start it, after whatever dead forges left; one that is not detached carries its owner's name, to be reaped by."""
        log = Path(running.log)
        make_private(log)
        labels = {owners.KEY: running.container} if launch.detach else owners.labels(running.container)
        with self._daemon.connected() as api:
            Runs(self._daemon, DIAGNOSES).clear(api)
            owners.remove(api, running.container)
            box = self._box(launch, running, launch.host_network or network(api) == "host")
            box = replace(box, entrypoint=_entrypoint(api, launch.image))
            try:
                _start(api, configuration(box, log, labels, memlock=True), running.container)
            except HostError as error:
                if "rlimit" not in error.what:
                    raise
                # A daemon that may not raise its own limit may not raise the container's either; it is not needed to serve.
                owners.remove(api, running.container)
                _start(api, configuration(box, log, labels, memlock=False), running.container)
            pid = _look(api, running.container).pid
        return replace(running, pid=pid, started=_ticks(pid, running.container), inode=log.stat().st_ino)

    def alive(self, running: Running) -> bool:
        """Whether its first process is still there; where this machine does not see it, the daemon is asked."""
        if running.started:
            return processes.started(running.pid) == running.started
        if not running.pid:
            return False
        with self._daemon.connected() as api:
            return _look(api, running.container).running

    def ended(self, running: Running) -> str:
        """How it ended, as the daemon knows it."""
        with suppress(ForgeError):
            said = self._last(running)
            if said.oom_killed:
                return f"exit code {said.exit_code}: the memory it may use ran out"
            if said.exit_code == _KILLED:
                return "it was killed (exit code 137)"
            return f"exit code {said.exit_code}"
        return ""

    def died(self, running: Running) -> str:
        """Of what it died, as the daemon and its log know it; empty where it was asked to end, or the container removed."""
        said = self._last(running)
        why = cause(_SHELL - said.exit_code if said.exit_code > _SHELL else said.exit_code, written(running))
        return f"{why}: the memory it may use ran out" if why and said.oom_killed else why

    def _last(self, running: Running) -> State:
        with self._daemon.connected() as api:
            until = time.monotonic() + _LATE
            while (said := _look(api, running.container)).running and time.monotonic() < until:
                time.sleep(self.pause)  # its process is gone, and the daemon has yet to hear of it
        return said

    def stands(self, running: Running) -> bool:
        """Whether somebody has stopped it, or paused the container."""
        with self._daemon.connected() as api:
            return _look(api, running.container).paused or (bool(running.started) and stillness.stands(running.pid))

    def kill(self, running: Running) -> None:
        """End what runs in the container, and leave that."""
        with self._daemon.connected() as api:
            _told(api, running.container, "SIGKILL")

    def end(self, running: Running, patience: float) -> None:
        """SIGINT, ``patience`` seconds, then SIGKILL; the container is removed."""
        end_container(self._environ, running.container, patience, served(written(running)))

    def furnish(self, launch: Launch, running: Running) -> None:
        """Show it what its repositories hold now, where that takes more than their own folders."""
        if launch.several:
            lay_view(launch, _view(running))

    def _shares_network(self, launch: Launch) -> bool:
        if launch.host_network:
            return True
        with suppress(HostError), self._daemon.connected() as api:
            return network(api) == "host"
        return False  # as Docker comes; nobody says otherwise while no daemon answers

    def _box(self, launch: Launch, running: Running, shared: bool) -> Box:
        marker, inside = running.shared_memory, launch.ports if shared else PUBLISHED
        self.furnish(launch, running)
        mounts = places(launch)
        places_inside, gpus = tuple(map(str, mounts.values())), self._count(launch.gpus)
        shown = (unlisted.ASKED_TO_SHOW,) if launch.ports.exposed else ()
        before = ("python3", "-I", "-S", str(UNLISTED), *shown, str(KEY))
        place = ServerPlace("tritonserver", places_inside, inside, marker, gpus=gpus, before=before, nonce=running.nonce)
        key = key_file(running)
        return Box(
            name=marker,
            image=launch.image,
            argv=arguments(launch, place),
            env=variables(launch),
            mounts=(
                *([(_view(running), REPOSITORY)] if launch.several else []),
                *mounts.items(),
                (Path(unlisted.__file__), UNLISTED),
                *([(key, KEY)] if key.is_file() else []),
            ),
            gpus=launch.gpus,
            published=None if shared else launch.ports,
            traces=tracing_is_for_admins(),
        )

    def _count(self, gpus: str) -> int:
        """How many a container sees; one at least of ``all``, where this machine does not say how many there are."""
        if gpus == "all":
            return max(1, len(ThisMachine(self._environ).gpus()))
        return len(gpus.split(",")) if gpus else 0


def tracing_is_for_admins(scope: Path = Path("/proc/sys/kernel/yama/ptrace_scope")) -> bool:
    """Whether Yama lets nobody trace its own children but who has CAP_SYS_PTRACE (2; at 3 nobody may, whatever it has)."""
    with suppress(OSError):
        return scope.read_text(encoding="ascii").strip() == "2"
    return False


def _view(running: Running) -> Path:
    return Path(running.log).with_suffix(VIEW)


def end_container(environ: Mapping[str, str], name: str, patience: float, is_served: Callable[[], bool]) -> None:
    """Ask a container's server to finish, wait, kill what is left and remove it; one that is gone is what was wanted.

    It has ``patience`` seconds while requests are under way, and no more than a moment once all are served: what Triton does
    then is unload models one after the other, and its memory goes with the container.
    """
    with Daemon(environ).connected() as api:
        deadline = time.monotonic() + (patience if _told(api, name, "SIGINT") else 0.0)
        while time.monotonic() < deadline and _look(api, name).running:
            time.sleep(0.1)
            if is_served():
                deadline = min(deadline, time.monotonic() + _MOMENT)
        owners.remove(api, name)


def _told(api: Api, name: str, signal: str) -> bool:
    """Whether it was there to be told."""
    import docker.errors

    with ours("stop a container", name):
        try:
            api.kill(name, signal=signal)
        except docker.errors.APIError as error:
            if error.status_code not in {404, 409}:  # gone, or not running
                raise
            return False
    return True


def _start(api: Api, config: Mapping[str, object], name: str) -> None:
    with ours("make a container"):
        api.create_container_from_config(config, name)
    with ours("start a container"):
        api.start(name)


def _look(api: Api, name: str) -> State:
    """A container's state; one that is gone runs not."""
    import docker.errors

    with ours("look at a container", name):
        try:
            return msgspec.convert(api.inspect_container(name), Inspected).state
        except docker.errors.NotFound:
            return State()


def _entrypoint(api: Api, image: str) -> tuple[str, ...]:
    """What the image puts before a command: NVIDIA's sets up CUDA's forward compatibility."""
    import docker.errors

    with ours("look at an image", image):
        try:
            config = msgspec.convert(api.inspect_image(image), Image).config
        except docker.errors.NotFound:
            hint = "`forge build RECIPE` makes it again; what is in the store is not built twice"
            raise HostError("this machine no longer holds the image its models were built in", where=image, hint=hint) from None
    return tuple((config and config.entrypoint) or ())


def _ticks(pid: int, marker: str) -> float:
    """When ``pid`` started, if it is this container's process: another machine's or namespace's numbers mean others here."""
    with suppress(OSError):
        if marker.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return processes.started(pid) or 0.0
    return 0.0
