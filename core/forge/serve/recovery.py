"""Models of a server that have died: found, brought back with what stands on them, counted, and given up in the end.

What is sure is acted on: a process that is gone or stopped, Triton's own word that one is not healthy, and a model that is late
twice while nothing of the server computes. A long queue is none of these.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from msgspec import Struct, field
from msgspec.structs import replace

from forge.errors import ServerError
from forge.schema.values import Role
from forge.serve.launch import Plan, holdings, in_turn
from forge.serve.server_types import Running, Server
from forge.serve.vitals import WORKING, Health, Healths, Pulse, Signs, Times, judged, used

DEADLINE = 10.0
"""Seconds that a model has to answer something tiny."""
LOOK = 2.0
"""Seconds between two looks at a server."""
TRIES = 5
"""A model that dies so often in quick succession is given up."""
LONGEST = 60.0
"""Seconds: the longest wait before a restart, and how long a model has to live for its failures to be forgotten."""
_ANEW = "`forge logs` says more; `forge stop` and `forge serve` start all of it anew"
_LATER = (Role.BLS, Role.ENSEMBLE)


class _Seen(Struct):
    """What is remembered of one model between looks; times by the watch's clock."""

    had: bool = False
    """It is known to have processes of its own."""
    missing: int = 0
    stopped: float | None = None
    failed: int = 0
    waiting: float | None = None
    cpu: Times = field(default_factory=dict[int, float])
    accused: int = 0
    late: int = 0
    failures: int = 0
    next: float = 0.0
    restarted: float | None = None

    def look(self, signs: Signs | None, now: float, deadline: float) -> str:
        """Why it is dead for sure, or nothing; no signs are seen of a model that is not loaded."""
        if signs is None:
            self.missing += 1
            return "it is not loaded" if self.missing > 1 else ""
        self.had = self.had or signs.instances > 0
        self.missing = self.missing + 1 if self.had and signs.processes < max(1, signs.instances) else 0
        self.stopped = None if not signs.stopped else now if self.stopped is None else self.stopped
        if self.missing > 1:
            return "its process has ended"
        return "its process is stopped" if self.stopped is not None and now - self.stopped >= deadline else ""

    def doubted(self, signs: Signs, now: float, deadline: float) -> bool:
        """Whether it is worth asking: requests failed, or wait while it does nothing."""
        fails = signs.failed > self.failed
        self.failed = signs.failed
        if not signs.pending:
            self.waiting = None
        elif self.waiting is None or used(self.cpu, signs.cpu) > WORKING * (now - self.waiting):
            self.waiting, self.cpu = now, signs.cpu
        return fails or bool(self.accused or self.late) or (self.waiting is not None and now - self.waiting >= deadline)


class Watch(Struct):
    """Looks after one server. ``steady`` is a clock for measuring, ``now`` gives seconds since 1970."""

    server: Server
    plan: Plan
    steady: Callable[[], float]
    now: Callable[[], float]
    say: Callable[[str], None]
    deadline: float = DEADLINE
    _seen: dict[str, _Seen] = field(default_factory=dict[str, _Seen])

    def look(self, running: Running) -> None:
        """One look: what has died is restarted, unless it is too soon after the last time, or given up."""
        signs = self.server.signs(running)
        if signs is None:
            return  # it does not speak just now; whether it lives is another's concern
        now, deadline = self.steady(), self.deadline
        for model in running.models:
            self._seen.setdefault(model, _Seen(failed=signs[model].failed if model in signs else 0))
        self._seen = {model: self._seen[model] for model in running.models}
        dead = {model: why for model, seen in self._seen.items() if (why := seen.look(signs.get(model), now, deadline))}
        doubts = [model for model, seen in self._seen.items() if model in signs and seen.doubted(signs[model], now, deadline)]
        if doubts and not dead:
            dead = self._asked(running, signs)
        self._forgive(running, dead, now)
        for model in in_order(running, tuple(dead)):
            self._bring_back(running, model, dead[model])

    def _asked(self, running: Running, signs: Mapping[str, Signs]) -> dict[str, str]:
        """Those that an ask finds dead: accused by Triton twice, or late twice while their processes do nothing."""
        pulses = asked(self.server, running, self.deadline)
        accused = {pulse.blamed: pulse.why for pulse in pulses if pulse.blamed}
        late = {pulse.model: pulse.why for pulse in pulses if pulse.late and not pulse.answers}
        for model, seen in self._seen.items():
            seen.accused = seen.accused + 1 if model in accused else 0
            seen.late = seen.late + 1 if model in late else 0
        dead = {model: why for model, why in accused.items() if model in self._seen and self._seen[model].accused > 1}
        if dead or accused:
            return dead
        calls = called(running)
        # Who calls a late model is late too, and may well live: the one that others stand on comes first.
        sure = [model for model in late if self._sure(model, signs) and late.keys().isdisjoint(calls.get(model, ()))]
        return {model: late[model] for model in in_order(running, sure)[:1]}

    def _sure(self, model: str, signs: Mapping[str, Signs]) -> bool:
        """Whether a late model is so for the second time, and has processes that could be ended."""
        return model in signs and self._seen[model].late > 1 and bool(signs[model].processes)

    def _bring_back(self, running: Running, model: str, why: str) -> None:
        seen, healths = self._seen[model], dict(self.server.health(running))
        health = healths.get(model, Health())
        health = replace(health, why=why, since=health.since or self.now())
        now = self.steady()
        if health.given_up or now < seen.next:
            self._note(running, model, health)
            return
        seen.failures += 1
        if seen.failures > TRIES:
            self.say(f"{model}: {why}; given up after {TRIES} restarts in a row")
            self._note(running, model, replace(health, given_up=True))
            return
        seen.next = now + min(2.0 ** (seen.failures - 1), LONGEST)
        self.say(f"{model}: {why}; being restarted")
        health = replace(health, restarts=health.restarts + 1)
        try:
            restart(self.server, self.plan, running, model)
        except ServerError as error:
            self.say(str(error))
            self._note(running, model, replace(health, why=error.what.partition("\n")[0]))
            return
        self._note(running, model, replace(health, since=0.0, why=""))
        self._seen = {each: kept for each, kept in self._seen.items() if kept.failures}
        self._seen[model] = _Seen(failures=seen.failures, next=seen.next, restarted=self.steady(), had=seen.had)
        self.say(f"{model}: restarted")

    def _forgive(self, running: Running, dead: dict[str, str], now: float) -> None:
        """Forget the failures of what has lived for long enough, and that it was dead of what was brought back by hand."""
        for model, seen in self._seen.items():
            if seen.restarted is not None and model not in dead and now - seen.restarted > LONGEST:
                seen.failures, seen.restarted = 0, None
        for model, health in self.server.health(running).items():
            sound = model in self._seen and model not in dead and not self._seen[model].missing
            if sound and health.since and self._seen[model].stopped is None and not self._seen[model].accused:
                self._note(running, model, replace(health, since=0.0, why="", given_up=False))
                self._seen[model].failures = 0

    def _note(self, running: Running, model: str, health: Health) -> None:
        held: Healths = dict(self.server.health(running))
        if held.get(model) != health:
            self.server.note(running, {**held, model: health})


class State(Struct, frozen=True, kw_only=True):
    """One model of a server, for a person: what it said just now, and what was done about it before."""

    repository: str
    model: str
    answers: bool
    busy: bool
    seconds: float
    why: str
    restarts: int
    since: float
    """Seconds since 1970 at which it was found dead; 0 where nobody has noticed before."""
    given_up: bool

    def said(self, now: float) -> str:
        """What is worth saying of it, if anything: that it does not answer, or how often it was restarted."""
        told = ["busy"] if self.busy else []
        if not self.answers:
            since = f" for {now - self.since:.0f} s" if self.since else ""
            told.append(f"does not answer{since}: {self.why}")
        if self.restarts:
            told.append(f"restarted {self.restarts} time{'s' * (self.restarts > 1)}")
        if self.given_up:
            told.append("given up: `forge logs`, then `forge reload`")
        return f"{self.model}: {'; '.join(told)}" if told else ""


class Care(Struct, frozen=True):
    """For who asks by hand. ``say`` is told what happens."""

    server: Server
    plan: Plan
    say: Callable[[str], None]

    def states(self, servers: Sequence[Running], deadline: float = DEADLINE) -> tuple[State, ...]:
        """Every model of ``servers``, all asked at once."""
        if not servers:
            return ()
        with ThreadPoolExecutor(len(servers)) as threads:
            found = tuple(threads.map(partial(asked, self.server, deadline=deadline), servers))
        return tuple(
            _state(running.repository, pulse, self.server.health(running).get(pulse.model, Health()))
            for running, pulses in zip(servers, found, strict=True)
            for pulse in pulses
        )

    def revive(self, running: Running) -> Running:
        """Ask every model and restart those that are dead; ServerError where one does not answer then either."""
        sick = [pulse for pulse in asked(self.server, running, DEADLINE) if not pulse.answers]
        if not sick:
            return running
        first = {pulse.blamed: pulse.why for pulse in sick if pulse.blamed in running.models}
        late = in_order(running, [pulse.model for pulse in sick])
        for model in in_order(running, tuple(first)) or late[:1]:
            self.say(f"{model}: {first.get(model) or 'no answer'}; being restarted")
            running = restart(self.server, self.plan, running, model)
        require(running, asked(self.server, running, DEADLINE))
        return running


def _state(repository: str, pulse: Pulse, health: Health) -> State:
    return State(
        repository=repository,
        model=pulse.model,
        answers=pulse.answers,
        busy=pulse.busy,
        seconds=pulse.seconds,
        why=pulse.why or ("" if pulse.answers else health.why),
        restarts=health.restarts,
        since=0.0 if pulse.answers else health.since,
        given_up=health.given_up and not pulse.answers,
    )


def asked(server: Server, running: Running, deadline: float) -> tuple[Pulse, ...]:
    """What every model says, or is known to be doing where it is late; each has ``deadline`` seconds."""
    return judged(server.ask(running, deadline), called(running))


def called(running: Running) -> dict[str, tuple[str, ...]]:
    """Model -> those that it calls and waits for."""
    return {
        caller: parts for one in holdings(running).values() for model in one.models for caller, parts in model.calls.items()
    }


def require(running: Running, pulses: Sequence[Pulse]) -> None:
    """ServerError where a model did not answer."""
    if sick := [pulse for pulse in pulses if not pulse.answers]:
        what = "\n".join(f"model {pulse.model!r} does not answer: {pulse.why}" for pulse in sick)
        raise ServerError(what, where=running.repository, hint=_ANEW)


def restart(server: Server, plan: Plan, running: Running, model: str) -> Running:
    """Restart one model with those that cannot do without it; ServerError names what did not load."""
    return server.restart(running, plan(holdings(running), running), with_dependents(running, model))


def with_dependents(running: Running, folder: str) -> tuple[str, ...]:
    """A model, and those of its recipe that have to be loaded anew with it, in the order of loading.

    An ensemble is taken out by Triton when a part of it is. A bls waits for ever for the streams of an engine that has died.
    """
    for manifest in holdings(running).values():
        for model in manifest.models:
            role = next((each for each, name in model.roles.items() if name == folder), None)
            if role is None:
                continue
            engine = role in {Role.TENSORRT_LLM, Role.DRAFT}
            needed = {folder, model.roles.get(Role.ENSEMBLE if role is not Role.BLS else role, folder)}
            needed |= {model.roles.get(Role.BLS, folder)} if engine else set[str]()
            return tuple(each for each in in_turn(model) if each in needed)
    return (folder,)


def in_order(running: Running, models: Sequence[str]) -> tuple[str, ...]:
    """``models`` with those first that others call."""
    late = {
        name: _LATER.index(role) + 1
        for manifest in holdings(running).values()
        for model in manifest.models
        for role, name in model.roles.items()
        if role in _LATER
    }
    return tuple(sorted(models, key=lambda model: (late.get(model, 0), model)))
