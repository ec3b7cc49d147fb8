"""A Triton that ends, or hangs, while somebody looks after it: of what, whether it is started again, and when enough is enough.

As systemd's ``Restart=on-failure`` with a limit: one that was asked to end stays ended.
"""

import shlex
import time
from collections.abc import Callable

from msgspec import Struct

from forge.errors import ForgeError
from forge.schema.values import Ports
from forge.serve.launch import Plan, holdings
from forge.serve.log import last, written
from forge.serve.server_types import Crash, Running, Server
from forge.serve.vitals import WORKING, Stance, used

PAUSES = (1.0, 4.0, 16.0)
"""Seconds before each start."""
WITHIN = 600.0
"""Seconds in which one that dies more often than there are ``PAUSES`` is given up."""
BROKEN = 30.0
"""Seconds after which a Triton with a thread in the handler of a fault does not end any more."""
SILENT = 120.0
"""Seconds of silence after which any other hangs, where it has done nothing meanwhile."""
_LOOKS = 5
"""So often it has to be found so: a machine that slept may find one late."""


def crashes_of(running: Running) -> str:
    """How often it was started again, and of what it died last."""
    last, count = running.crashes[-1], len(running.crashes)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last.at))
    return f"its Triton was started again {count} time{'s' * (count > 1)}, last after {when}: {last.why}"


def unwatched(running: Running) -> bool:
    """Whether nobody looks after it, though somebody did."""
    return bool(running.vigil_started) and not running.vigil


def alone(running: Running) -> str:
    """That it is unwatched, and the whole line that changes that: with other ports it would be another server."""
    ports = running.ports
    said = {"--http-port": ports.http, "--grpc-port": ports.grpc, "--metrics-port": ports.metrics}
    said |= {"--openai-port": ports.openai} if ports.openai else {}
    words = [word for place in running.repositories for word in ("--repository", place)]
    words += [str(word) for option in said.items() for word in option]
    words += ["--host", ports.host] if ports.host != Ports().host else []
    words += ["--ui"] * ports.page + ["--exposed"] * ports.exposed
    gone = "nothing starts its Triton, or a model of it, again where that dies: the process of forge that did so is gone"
    return f"{gone}; `{shlex.join(['forge', 'serve', '--detach', *words])}` has another look after it"


def without(running: Running) -> str:
    """Which models it lost when it was started again, in words that follow; empty where it has all."""
    lost = [model for model in running.missing if model not in running.models]
    hint = "the repository had them no longer; `forge build` of their recipe and `forge reload` bring them back"
    return f", without {', '.join(lost)}: {hint}" if lost else ""


class Hang(Struct):
    """How long a Triton that lives has been of no use. ``steady`` is a clock for measuring.

    Its own handler of SIGSEGV and SIGABRT puts a stack together, for which it needs the heap. Where that is what broke, it
    waits for ever (seen on 2.51 after "double free or corruption"): the process stays, with its ports, and answers nobody, or
    some for a while, since each thread has a part of the heap.
    """

    server: Server
    steady: Callable[[], float]
    _looks: int = 0
    _since: float = 0.0
    _first: Stance | None = None

    def look(self, running: Running) -> str:
        """Why it has to be ended, for a person; empty where that is not sure."""
        stance, now = self.server.stance(running), self.steady()
        first = self._first or stance
        fault = next((stance.faults[thread] for thread in first.faults if thread in stance.faults), "")
        if stance.stands or not (fault or not stance.speaks):
            self._first, self._looks = None, 0
            return ""
        if self._first is None:
            self._first, self._since = stance, now
        self._looks += 1
        elapsed = now - self._since
        if self._looks < _LOOKS or elapsed < (BROKEN if fault else SILENT):
            return ""
        if fault:
            return f"{fault}, and it hung instead of ending"
        idle = bool(stance.cpu) and used(first.cpu, stance.cpu) <= WORKING * elapsed
        return f"it answered nobody for {elapsed:.0f} s and did nothing" if idle else ""


class Restart(Struct, frozen=True):
    """Starts one server again. ``now`` gives seconds since 1970; ``say`` is told what happens."""

    server: Server
    plan: Plan
    now: Callable[[], float]
    sleep: Callable[[float], None]
    say: Callable[[str], None]

    def attempt(self, marker: str, hung: str = "") -> bool:
        """Whether the server with this mark, which does not run, runs again; False where it is over. ``hung`` says why whoever
        looks after it ended its Triton."""
        found = self.server.postmortem(marker)
        if found is None:
            return False
        running, why = found
        why = why and (hung or why)
        if not why:
            self.say("Triton was asked to end")
            return False
        while True:
            running = self.server.crashed(running, Crash(self.now(), why))
            recent = [crash for crash in running.crashes if crash.at > self.now() - WITHIN]
            if len(recent) > len(PAUSES):
                self.server.give_up(running, f"its Triton died {len(recent)} times within {WITHIN / 60:g} minutes: {why}")
                self.say(f"Triton died: {why}; given up after {len(PAUSES)} starts within {WITHIN / 60:g} minutes")
                return False
            pause = PAUSES[len(recent) - 1]
            said = f"Triton died: {why}; it is started again in {pause:g} s ({len(recent)} of {len(PAUSES)})"
            self.say(f"{said}; its log ends so:\n{last(written(running))}")
            self.sleep(pause)
            try:
                again = self.server.again(running, self.plan(holdings(running), running), lambda _: None)
            except ForgeError as error:
                self.say(str(error))
                why = error.what.partition("\n")[0]
                continue
            if again is not None:
                self.say(f"Triton runs again: process {again.pid}{without(again)}")
            return again is not None
