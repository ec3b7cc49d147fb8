"""One step on one node: its inputs are drawn from the shared store, it is made as anywhere else, its result is sent there."""

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from msgspec import Struct

from forge.build.builder import Builder
from forge.build.scheduler import Allowance
from forge.cluster.equipment import Equipment
from forge.cluster.errand import Errand, Made, required
from forge.cluster.work import Travel, rest
from forge.errors import StoreError
from forge.events import Event, Listener
from forge.plan.steps import with_needs
from forge.remote.place import RemoteError
from forge.remote.shared import Shared
from forge.remote.signature import UntrustedError

T = TypeVar("T")
OUTAGE = 600.0
"""Seconds for a shared store to come back, before a step that waits for it fails."""
_PAUSE = 1.0


class Workplace(Struct, frozen=True):
    """Makes one errand."""

    errand: Errand
    equipment: Equipment
    tell: Listener

    def make(self) -> Made:
        """Have the result in the shared store; nothing is made where it stands there. ForgeError as the step raises it."""
        step, store = required(self.errand), self.equipment.store
        remote = self.errand.remote
        shared = Shared(
            lambda: self.equipment.place(remote.url, remote.deadline),
            remote.url,
            self.tell,
            time.time,
            notary=self.equipment.notary,
        )
        waits = Patience(self.tell, self.equipment.tools.halt.check, step.name)
        held = store.find(step.key)
        if held is None and (there := waits.until(lambda: shared.known(step.key))) is not None and not there.problem:
            return Made(there.size, fresh=False)
        if fresh := held is None:
            self._work(shared, waits)
            held = store.find(step.key)
        if held is None:
            raise StoreError(f"{step.name} was made, and is gone from the node's own store", where=str(store.root))
        with store.using((step.key,)):
            found = held
            waits.until(lambda: shared.push(found))
        return Made(held.size, fresh=fresh)

    def _work(self, shared: Shared, waits: "Patience") -> None:
        step, store = required(self.errand), self.equipment.store
        *below, _ = with_needs(step)
        travels = Travel(self.errand.remote.push).travels
        with store.using((step.key, *(need.key for need in below))):
            roots = {need.key for _, need in step.needs}
            taken, made = rest(below, roots, lambda need: store.find(need.key) is not None, travels)
            for need in taken:
                if waits.until(partial(shared.pull, need.key, store)) is None:
                    raise StoreError(f"its need {need.name!r} is gone from the shared store", where=shared.name)
            Builder(store, self.equipment.tools, self.tell, Allowance()).realise((*made, step))


class Patience(Struct, frozen=True):
    """Waits for a shared store that does not answer, and says so once. ``check`` raises where all is to end."""

    tell: Listener
    check: Callable[[], None]
    step: str
    outage: float = OUTAGE

    def until(self, do: Callable[[], T]) -> T:
        """What ``do`` gives once the shared store answers; RemoteError where that takes too long, or waiting is no use."""
        began, said = time.monotonic(), False
        while True:
            try:
                return do()
            except (RemoteError, TimeoutError) as error:
                self.check()
                refused = isinstance(error, UntrustedError) or (isinstance(error, RemoteError) and "is not taken" in error.what)
                if refused or time.monotonic() - began > self.outage:
                    raise
                if not said:
                    self.tell(Event("note", self.step, text=f"the shared store does not answer, which is waited for: {error}"))
                said = True
                time.sleep(_PAUSE)
