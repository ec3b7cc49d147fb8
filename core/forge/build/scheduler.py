"""Works through steps side by side: each begins when its needs are there, its lane has room and its GPUs are free.

Work is done on threads; whoever listens is told on the thread that runs the scheduler, one event after the other.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from graphlib import TopologicalSorter
from operator import itemgetter
from queue import SimpleQueue
from threading import Thread

from msgspec import Struct

from forge.errors import ForgeError
from forge.events import Event, Listener
from forge.fit.gpus import clash
from forge.machine.interrupt import Halt
from forge.plan.steps import Fetch, Run, Step, Verify
from forge.store.artifact import Artifact


class Allowance(Struct, frozen=True):
    """How many steps may be under way: ``jobs`` that compute and, beside them, ``fetches`` that wait for the network."""

    jobs: int = 2
    fetches: int = 3


class _Ended(Struct, frozen=True):
    """One step's end: what it made, or why not."""

    step: Step
    artifact: Artifact | None = None
    error: BaseException | None = None


Perform = Callable[[Step, Listener], Artifact]
"""Make one step; whatever is told on the way goes to the listener."""


class Scheduler:
    """One run through some steps. After a failure nothing new begins, and what is under way is finished: it is not lost."""

    def __init__(self, allowance: Allowance, perform: Perform, tell: Listener, halt: Halt) -> None:
        self._allowance = allowance
        self._perform = perform
        self._tell = tell
        self._halt = halt
        self._heard: SimpleQueue[Event | _Ended] = SimpleQueue()
        self._busy: dict[str, Step] = {}
        self._made: dict[str, Artifact] = {}
        self._failure: BaseException | None = None

    def run(self, steps: Iterable[Step]) -> dict[str, Artifact]:
        """The artifacts of ``steps`` by key; a need that is not among them has to be held.

        Raises what the first failed step raised. On Ctrl-C every step is ended, and this returns when all have.
        """
        queue = _Queue(steps)
        try:
            while True:
                for step in self._startable(queue):
                    Thread(target=self._work, args=(step,), name=f"forge: {step.name}", daemon=True).start()
                if not self._busy:
                    break
                self._hear_an_end(queue)
        except BaseException:
            self._halt.pull()
            self._dismiss()
            raise
        if self._failure is not None:
            raise self._failure
        return self._made

    def _startable(self, queue: "_Queue") -> Iterator[Step]:
        """All that can start now, in the plan's order; nothing after a failure."""
        if self._failure is not None:
            return
        for fetching, allowed in ((True, self._allowance.fetches), (False, self._allowance.jobs)):
            room = allowed - sum(isinstance(other.action, Fetch) == fetching for other in self._busy.values())
            for step in queue.ready(fetching) if room > 0 else ():
                if any(clash(gpus(step), gpus(other)) for other in self._busy.values()):
                    continue
                queue.take(step)
                self._busy[step.key] = step
                yield step
                room -= 1
                if not room:
                    break

    def _work(self, step: Step) -> None:
        try:
            self._heard.put(_Ended(step, artifact=self._perform(step, self._say)))
        except BaseException as error:  # noqa: BLE001 - carried to the scheduler's thread, and raised there
            self._heard.put(_Ended(step, error=error))

    def _say(self, event: Event) -> None:
        """A thread has the word: the moment in which it learns that all is to end."""
        self._halt.check()
        self._heard.put(event)

    def _hear_an_end(self, queue: "_Queue") -> None:
        """Tell what is said until a step has ended."""
        while isinstance(said := self._heard.get(), Event):
            self._tell(said)
        del self._busy[said.step.key]
        if said.artifact is not None:
            self._made[said.step.key] = said.artifact
            queue.made(said.step)
        elif said.error is not None:
            self._failed(said.step, said.error)

    def _failed(self, step: Step, error: BaseException) -> None:
        if isinstance(error, ForgeError):
            error.step = step.name
        else:
            error.add_note(f"in the step {step.name!r}")
        told = ""
        if self._failure is not None:
            told = str(error)
        elif self._busy:
            names = ", ".join(other.name for other in self._busy.values())
            told = f"being finished before this ends: {names}"
        self._failure = self._failure or error
        self._tell(Event("failed", step.name, step.key, text=told))

    def _dismiss(self) -> None:
        """Wait for every thread; what they still say is not heard."""
        while self._busy:
            said = self._heard.get()
            if isinstance(said, _Ended):
                del self._busy[said.step.key]


class _Queue:
    """Steps that have not begun: which of them could, and which wait for which. One costs the same however many there are."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._order = {step.key: (at, step) for at, step in enumerate(steps)}
        lacks = {key: {need.key for _, need in step.needs} & self._order.keys() for key, (_, step) in self._order.items()}
        self._ready: dict[bool, list[tuple[int, Step]]] = {True: [], False: []}
        self._waiting = TopologicalSorter(lacks)
        self._waiting.prepare()
        self._line_up()

    def ready(self, fetching: bool) -> tuple[Step, ...]:
        """What could begin, downloads or all else, in the plan's order."""
        return tuple(step for _, step in self._ready[fetching])

    def take(self, step: Step) -> None:
        lane = self._lane(step)
        del lane[bisect_left(lane, self._order[step.key][0], key=itemgetter(0))]

    def made(self, step: Step) -> None:
        """Those that waited for nothing else could begin now."""
        self._waiting.done(step.key)
        self._line_up()

    def _line_up(self) -> None:
        for key in self._waiting.get_ready():
            insort(self._lane(self._order[key][1]), self._order[key], key=itemgetter(0))

    def _lane(self, step: Step) -> list[tuple[int, Step]]:
        return self._ready[isinstance(step.action, Fetch)]


def gpus(step: Step) -> frozenset[str]:
    """The GPUs that a step takes for itself, by number or id."""
    return frozenset(step.action.gpus.split(",")) - {""} if isinstance(step.action, Run | Verify) else frozenset[str]()
