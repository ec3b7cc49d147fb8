"""Whether the models that are offered live: each part of each is asked for one token, with a deadline."""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from forge.schema.manifest import PublishedModel
from forge.schema.values import Role
from forge.serve.openai.api_errors import Fault
from forge.serve.openai.models import Models
from forge.serve.vitals import Pulse, judged

DEADLINE = 5.0
"""Seconds that each model has to answer."""
_FRESH = 2.0
"""Seconds for which the outcome of one round serves all who want to know."""
_FIX = "`forge status` says more, `forge reload` starts anew what is dead, `forge logs` says what happened"

Ask = Callable[[Sequence[str], float], Sequence[Pulse]]
"""Asks models of the server, by their folders, each with so many seconds; waits for all of them."""


class State(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model that is offered: ``state`` is answers, busy or dead."""

    state: str
    why: str = ""
    """Which of its parts does not answer, and why."""


class _Said(Struct, frozen=True, kw_only=True):
    status: str
    models: dict[str, State]


class Sick(Fault):
    """Some of the models that are offered do not answer: a fault that says of each how it is."""

    def __init__(self, states: dict[str, State]) -> None:
        dead = "; ".join(f"{name}: {held.why}" for name, held in states.items() if held.state == "dead")
        super().__init__(503, f"{dead} ({_FIX})", code="model_dead")
        self._states = states

    @property
    def body(self) -> bytes:
        error = msgspec.json.decode(super().body, type=dict[str, object])
        return msgspec.json.encode({**error, "status": "failing", "models": self._states})


class Rounds:
    """Asks by ``ask`` whether the models of ``offers`` live. ``steady`` is a clock for measuring.

    One round at a time, and one for all who want to know meanwhile: looking often costs the models no more.
    """

    def __init__(self, ask: Ask, offers: Models, steady: Callable[[], float]) -> None:
        self._ask = ask
        self._offers = offers
        self._steady = steady
        self._heard: dict[str, float] = {}
        self._round: asyncio.Task[dict[str, State]] | None = None
        self._ended = float("-inf")
        self._keys: frozenset[tuple[str, str]] = frozenset()
        """What was offered when the last round began: names, and what was built."""

    def heard(self, name: str) -> None:
        """The model has just said something to a client."""
        self._heard[name] = self._steady()

    async def states(self) -> dict[str, State]:
        """Each model that is offered, by name."""
        keys = frozenset((name, offer.key) for name, offer in self._offers.all().items())
        stale = self._round is None or (self._round.done() and self._steady() - self._ended > _FRESH)
        if self._round is None or stale or keys != self._keys:
            self._keys = keys
            self._round = asyncio.create_task(self._look())
        return await asyncio.shield(self._round)

    async def document(self) -> bytes:
        """What is said where all is well; Sick where a model is dead."""
        states = await self.states()
        if any(held.state == "dead" for held in states.values()):
            raise Sick(states)
        return msgspec.json.encode(_Said(status="ok", models=states))

    async def require(self, name: str) -> None:
        """Sick where the model is offered and dead."""
        states = await self.states()
        if name in states and states[name].state == "dead":
            raise Sick({name: states[name]})

    async def _look(self) -> dict[str, State]:
        began = self._steady()
        models = {name: offer.target.model for name, offer in self._offers.all().items()}
        folders = [folder for model in models.values() for folder in model.roles.values()]
        calls = {caller: parts for model in models.values() for caller, parts in model.calls.items()}
        try:
            pulses = await asyncio.to_thread(self._ask, folders, DEADLINE)
        finally:
            self._ended = self._steady()
        found = {pulse.model: pulse for pulse in judged(pulses, calls)}
        return {name: self._state(model, found, began) for name, model in models.items()}

    def _state(self, model: PublishedModel, found: dict[str, Pulse], began: float) -> State:
        speaks = self._heard.get(model.name, float("-inf")) >= began
        pulses = {role: found[folder] for role, folder in model.roles.items()}
        # A token that has just come shows that the engine and who asks it live; not what is asked but once an answer.
        busy = {role for role, pulse in pulses.items() if pulse.late and speaks and role not in _ONCE}
        dead = [pulse for role, pulse in pulses.items() if not pulse.answers and role not in busy]
        if dead:
            return State(state="dead", why=", ".join(f"{pulse.model} does not answer ({pulse.why})" for pulse in dead))
        return State(state="busy" if busy or any(pulse.busy for pulse in pulses.values()) else "answers")


_ONCE = (Role.PREPROCESSING, Role.POSTPROCESSING)
