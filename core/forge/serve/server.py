"""The Server port: every Triton of this home folder, as a process of this machine or in a container."""

import os
import secrets
import time
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout
from msgspec.structs import replace

import forge
from forge.errors import ForgeError, ServerError
from forge.files.interpreter import own_python
from forge.machine import processes
from forge.schema.values import Command
from forge.serve import model_control as control, pulse, ready
from forge.serve.guardian import PATIENCE
from forge.serve.openai import sidecar
from forge.serve.port_holders import (
    called,
    claimed,
    imposter,
    not_free,
    require_apart,
    require_free,
    require_own,
    require_own_front,
    strangers,
)
from forge.serve.process import TritonProcess
from forge.serve.ready import await_models, once_more, require_address, require_control, require_gpus, require_models
from forge.serve.restart import alone, unwatched
from forge.serve.server_types import Crash, Launch, Running, StartingError, Way, stop_line
from forge.serve.state import DIED_LOG, Guard, States, cared_for, coming, died, stopped
from forge.serve.usage import usage
from forge.serve.vitals import Healths, Pulse, Signs, Stance, Usage

_WATCH_LOG = ".watch.log"
"""Suffix of the log of the process that looks after a server's models, beside the server's."""
_LOOK = 0.2
_ABORTED = 3.0
"""Seconds for a server that never became ready to finish by itself."""
_DRAINED = 60.0
"""Seconds for the requests of a model that is taken out."""
_LOST = 2.0
"""The same for one whose process is gone: Triton never gives up what that had begun, but loads a successor."""


class Servers:
    """The servers of one home. It keeps a state file and a log for each; ``patience`` is seconds to become ready.

    A server that is not detached ends with the process that started it, through its guardian.
    """

    def __init__(self, home: Path, environ: Mapping[str, str], patience: float = 600.0) -> None:
        self._home = home
        self._states = States(home / "servers")
        self._environ = environ
        self._patience = patience
        self._guards: dict[str, Guard] = {}

    def _way(self, container: str) -> Way:
        """The way of a launch by its image, of a server by its container."""
        if not container:
            return TritonProcess(self._environ)
        from forge.serve.container import TritonContainer

        return TritonContainer(self._environ)

    def command(self, launch: Launch) -> Command:
        """The command line and environment of ``start``; for a container, ``docker run`` as a person would type it.

        Models that ``start`` loads in turns are all on it: nobody would load them afterwards. ServerError for one port that is
        asked for twice.
        """
        require_apart(launch.ports)
        return self._way(launch.image).command(replace(launch, turns=()), self._planned(launch))

    def start(self, launch: Launch, line: Callable[[str], None]) -> Running:
        """Start and wait until every model is ready, each line of the log told to ``line``.

        HostError for a Triton, or an engine, that cannot run here; ServerError for a taken port, a server that is there
        already, and models that do not load. After an error, or Ctrl-C, nothing is left running.
        """
        way = self._way(launch.image)
        require_apart(launch.ports)
        way.check(launch)
        require_gpus(launch, way.gpus)
        sidecar.require(launch.ports, line)
        require_models(launch)
        require_address(launch, way.inside(launch), line)
        try:
            with self._states.lock(launch.repositories), claimed(launch.ports):
                self._require_room(launch)
                log = self._states.log(launch.repository)
                return once_more(launch, log, line, lambda each: self._started(way, each, line))
        except Timeout as error:
            raise StartingError(
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

    def load(self, running: Running, launch: Launch, models: Sequence[str], line: Callable[[str], None]) -> Running:
        """Load ``models`` one after the other, as the port says; waits for a forge that is starting the server just now."""
        with self._changing(running) as now:
            way, newcomers = self._way(now.container), replace(launch, models=tuple(models), ports=now.ports)
            require_gpus(launch, way.gpus)
            require_address(newcomers, way.inside(newcomers), line)
            way.furnish(launch, now)
            return self._loaded(now, models, launch.entries)

    def unload(self, running: Running, models: Sequence[str]) -> Running:
        """Take ``models`` out one after the other, as the port says; those whose requests go on and on, or whose process has
        died, are together waited for as long as one would be."""
        with self._changing(running) as now:
            deadline = time.monotonic() + min(self._patience, _DRAINED)
            for model in models:
                if model not in now.models and not ready.answers(now.ports, model):  # one may be killed before it notes a load
                    continue
                control.unload(now, model, max(min(self._patience, _LOST), deadline - time.monotonic()))
                kept = {name: key for name, key in now.loaded.items() if name != model}
                now = replace(now, models=tuple(each for each in now.models if each != model), loaded=kept)  # noqa: PLW2901
                self._states.keep(now)
            return now

    def current(self, marker: str) -> Running | None:
        """The server with this mark, as the port says."""
        found = self._kept(marker)
        return found if found and self.alive(found) else None

    def postmortem(self, marker: str) -> tuple[Running, str] | None:
        """The server with this mark that does not run, as the port says."""
        found = self._kept(marker)
        return None if found is None or self.alive(found) else (found, self._cause(found))

    def crashed(self, running: Running, crash: Crash) -> Running:
        """Note it in the state file, which says from now on that no process is the server's."""
        running = replace(running, pid=0, started=0.0, crashes=(*running.crashes, crash))
        self._states.keep(running)
        return running

    def again(self, running: Running, launch: Launch, line: Callable[[str], None]) -> Running | None:
        """Start it again, as the port says; who keeps the API up in front of it goes on."""
        way = self._way(launch.image)
        turns = (tuple(model for model in turn if model in running.models) for turn in launch.turns)
        models = tuple(model for model in launch.models if model in running.models)
        missing = tuple(dict.fromkeys((*running.missing, *(model for model in running.models if model not in models))))
        # It belongs to who started it first, through the guardian, or to nobody.
        wanted = replace(launch, models=models, turns=tuple(filter(None, turns)), detach=True)
        with self._states.lock(launch.repositories, self._patience), claimed(replace(launch.ports, openai=0)):
            if self._kept(running.shared_memory) != running:
                return None
            planned, log = self._planned(wanted), Path(running.log)
            now = replace(running, models=wanted.first, loaded=planned.loaded, awaited=models, missing=missing)
            with suppress(OSError):
                log.replace(log.with_suffix(DIED_LOG))
            try:
                return once_more(wanted, log, line, lambda each: self._up(way, each, now, line))
            except ForgeError:
                self._states.keep(running)  # what it left is cleared away before the next start, or with the rest
                raise

    def give_up(self, running: Running, why: str) -> None:
        """Clear it away and note why, as the port says."""
        self._finish(running, 0.0, why)

    def ended(self) -> Mapping[str, str]:
        """How servers ended, as the port says."""
        return self._states.ended()

    def settled(self, running: Running, model: str) -> Running:
        """The server once ``model`` is there to be asked, as the port says: a starting one is noted before it can answer."""
        if ready.answers(running.ports, model):
            return running
        with self._changing(running) as now:
            return now

    def watch(self, running: Running, *, restart: bool, scrub: float) -> Running:
        """Look after it from a process that carries its mark, so that whoever ends it ends that process too. What a server gets
        of this process's environment goes along."""
        if not (restart or scrub):
            return running
        with self._changing(running) as now:
            if cared_for(now):  # another one was quicker: two would start one Triton twice
                return now
            does = ("restart" if restart else "leave", str(scrub))
            argv = (own_python(), "-P", "-m", "forge.api.vigil", str(self._home), running.shared_memory, *does)
            here = {"PYTHONPATH": str(Path(forge.__file__).parents[1]), processes.MARKER: running.shared_memory}
            theirs = {name: self._environ[name] for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if name in self._environ}
            theirs |= processes.nvidia(self._environ) | processes.vllm(self._environ) | self._way(running.container).guarded()
            pid = processes.detached(argv, theirs | here, Path(running.log).with_suffix(_WATCH_LOG))
            if not restart:
                return now
            cared = replace(now, vigil=pid, vigil_started=processes.started(pid) or 0.0)
            self._states.keep(cared)
            return cared

    def ask(self, running: Running, deadline: float) -> tuple[Pulse, ...]:
        """What each model says, as the port says."""
        ports = running.ports
        place = pulse.Place(ready.at(running, ports.grpc), ready.at(running, ports.metrics), running.shared_memory)
        return pulse.ask(place, running.models, deadline)

    def signs(self, running: Running) -> Mapping[str, Signs] | None:
        """What is seen of each model, as the port says; None of a server in whose place somebody else answers."""
        return None if imposter(running) else pulse.signs(running)

    def stance(self, running: Running) -> Stance:
        """How its Triton is, as the port says."""
        return pulse.stance(running, stands=self._way(running.container).stands(running))

    def kill(self, running: Running) -> None:
        """End its Triton, as the port says."""
        self._way(running.container).kill(running)

    def usage(self, running: Running) -> Usage:
        """What it uses, as the port says."""
        return usage(running, self._environ)

    def restart(self, running: Running, launch: Launch, models: Sequence[str]) -> Running:
        """Load ``models`` anew, as the port says. A process that hangs would keep its model's old version for ever: it is ended
        first, as far as it is this user's."""
        with self._changing(running) as now:
            wanted = [model for model in models if model in now.models]
            for model in reversed(wanted):
                processes.kill_stubs(now.shared_memory, model)
                control.unload(now, model, _LOST)
            self._way(now.container).furnish(launch, now)
            return self._loaded(now, wanted, launch.entries)

    def health(self, running: Running) -> Healths:
        """What is noted of its models."""
        return self._states.health(running)

    def note(self, running: Running, healths: Healths) -> None:
        """Note it beside the state file."""
        self._states.note(running, healths)

    def stop(self, running: Running) -> None:
        """Ask it to finish, wait, then kill all that it started; what it leaves and its state file go too."""
        kept = self._kept(running.shared_memory)
        if kept and kept.nonce != running.nonce:  # somebody has stopped it, and serves the repository anew
            self._dismiss(running)
            return
        if kept:
            self._states.ask(running)
        self._finish(running, PATIENCE)

    def _living(self, holding: Container[str] = ()) -> tuple[Running, ...]:
        """Those that are alive. The dead are cleared away, but for those that another forge is just starting. ``holding`` are
        the repositories whose lock the caller has."""
        found: list[Running] = []
        for running in self._states.kept():
            if self.alive(running):
                now = replace(running, front=0) if running.front and not sidecar.alive(running) else running
                now = now if cared_for(now) else replace(now, vigil=0)
                down = stopped(now) or (
                    coming(now) if now.awaited and self._states.busy(now) and not ready.healthy(now.ports) else ""
                )
                found.append(replace(now, down=down) if down else replace(now, stranger=imposter(now)))
            elif cared_for(running):
                found.append(replace(running, down=died(running)))
            elif running.repository in holding:
                self._bury(running)
            else:
                try:
                    with self._states.lock(map(Path, running.repositories)):
                        if running in self._states.kept():
                            self._bury(running)
                except Timeout:
                    if running.pid:
                        found.append(replace(running, down="its Triton died, and another forge clears it away just now"))
        return tuple(found)

    def _bury(self, running: Running) -> None:
        # Nothing of it runs: what a container engine that is away still holds of it can wait until that is back.
        with suppress(ForgeError):
            why = self._cause(running)
            self._finish(running, PATIENCE, why and f"its Triton died: {why}")

    def _cause(self, running: Running) -> str:
        """Of what it died, empty where it was asked to end, or never ran."""
        if self._states.asked(running):
            return ""
        if running.pid:
            return self._way(running.container).died(running)
        return running.crashes[-1].why if running.crashes else ""

    def _finish(self, running: Running, patience: float, why: str = "") -> None:
        running = self._kept(running.shared_memory) or running
        processes.kill(running.vigil, running.vigil_started)  # first: it would start again what it sees end
        self._way(running.container).end(running, patience)
        if running.container:  # what stands beside it on this machine
            processes.end(running.shared_memory, 0.0, lambda: True)
        self._states.forget(Path(running.repository), why)
        self._dismiss(running)

    def _dismiss(self, running: Running) -> None:
        if guard := self._guards.pop(running.shared_memory, None):
            guard.dismiss()

    def _require_room(self, launch: Launch) -> None:
        mine = tuple(map(str, launch.repositories))
        living = self._living(holding=mine)
        for other in living:
            if shared := next((place for place in mine if place in other.repositories), ""):
                what = f"a server runs on this repository already ({called(other)}, gRPC port {other.ports.grpc})"
                hint = f"use it, or stop it first: `{stop_line(shared)}`"
                raise ServerError(what, where=shared, hint=f"{hint}; {alone(other)}" if unwatched(other) else hint)
        require_free(launch.ports, living)

    def _started(self, way: Way, launch: Launch, line: Callable[[str], None]) -> Running:
        running = replace(self._planned(launch), nonce=f"forge-{secrets.token_hex(8)}")
        self._states.keep(running)
        self._states.draw_key(running)
        try:
            if not launch.detach:
                self._guards[running.shared_memory] = Guard.post(running, self._states.file(launch.repository), way.guarded())
            running = sidecar.begin(self._up(way, launch, running, line), self._environ)
            require_own_front(running)
            self._states.keep(running)
        except BaseException as error:  # Ctrl-C too: whatever ends the start, nothing is left running
            taken = strangers(running) if isinstance(error, ForgeError) else ""
            with suppress(ForgeError):  # what kept it from starting says more than that it cannot be ended either
                self._finish(running, _ABORTED)
            if isinstance(error, ForgeError) and (taken := taken or not_free(launch.ports)):
                hint = f"free it, or choose another (`forge serve --help`); the whole log: {running.log}"
                raise ServerError(f"{taken}: {error.what}", where=running.repository, hint=hint) from error
            raise
        return running

    def _up(self, way: Way, launch: Launch, running: Running, line: Callable[[str], None]) -> Running:
        """Start it and wait until every model is ready."""
        running = way.begin(launch, running)
        self._states.keep(running)
        await_models(way, running, self._patience, line)
        require_own(running)
        processes.close_off(running.shared_memory)
        require_control(launch, running, line)
        for turn in launch.turns:
            running = self._loaded(running, turn, launch.entries)
        running = replace(running, awaited=())
        self._states.keep(running)
        return running

    def _kept(self, marker: str) -> Running | None:
        return next((one for one in self._states.kept() if one.shared_memory == marker), None)

    def _planned(self, launch: Launch) -> Running:
        """A server that nobody has started yet."""
        marker, log = self._states.marker(launch.repository), self._states.log(launch.repository)
        running = Running(str(launch.repository), 0, 0.0, launch.ports, launch.first, str(log), marker, base=launch.base)
        others = tuple(map(str, launch.repositories[1:]))
        loaded = {model: launch.entries[model] for model in launch.first if model in launch.entries}
        return replace(running, others=others, container=marker if launch.image else "", loaded=loaded, awaited=launch.models)

    @contextmanager
    def _changing(self, running: Running) -> Generator[Running]:
        """The server as it is now, while nobody else starts it or changes its models; ServerError where it is gone."""
        deadline = time.monotonic() + self._patience
        while (now := self._kept(running.shared_memory)) and not self.alive(now) and cared_for(now):
            if time.monotonic() > deadline or now.vigil == os.getpid():
                break
            time.sleep(_LOOK)
        try:
            with self._states.lock(map(Path, running.repositories), self._patience):
                now = self._kept(running.shared_memory)
                if now is None or not self.alive(now):
                    raise ServerError("the server has ended", where=running.repository, hint="start it: `forge serve`")
                require_own(now)
                yield now
        except Timeout as error:
            what = "another forge has been starting this server, or changing its models, all the time"
            raise ServerError(what, where=running.repository, hint="`forge status` and `forge logs` say how it is") from error

    def _loaded(self, running: Running, models: Sequence[str], entries: Mapping[str, str]) -> Running:
        """``running`` with ``models`` as they are published from ``entries``; after each one, the state file says so."""
        way, server = self._way(running.container), running
        for model in models:
            control.load(running, model, lambda: way.alive(server), self._patience)
            models_now = running.models if model in running.models else (*running.models, model)
            known = {model: entries[model]} if model in entries else {}
            now = replace(running, models=models_now, loaded={**running.loaded, **known})
            if now != running:
                running = now
                self._states.keep(running)
        return running
