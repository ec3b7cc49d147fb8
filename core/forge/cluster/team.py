"""A build's steps on the nodes of a cluster: what is sent where, what comes back, and what is done about machines that die."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from msgspec import Struct, field
from msgspec.structs import replace

from forge.build.supply import Sharing, Supply
from forge.cluster.census import Facts, Wanted, differences
from forge.cluster.errand import Errand, Failed, Lost, Made, Report
from forge.cluster.fleet import Fleet
from forge.cluster.node import Node, require
from forge.cluster.spread import Placed, Spread
from forge.cluster.work import Spreadable, Travel, Work, images, rest, tops
from forge.cluster.workplace import Patience
from forge.errors import ForgeError, HostError, StepError, StoreError
from forge.events import Event, Listener
from forge.machine.interrupt import Halt
from forge.plan.steps import Step
from forge.remote.shared import Pushed
from forge.settings import RemoteTable
from forge.store.artifact import Artifact
from forge.store.store import Store

ATTEMPTS = 3
"""Processes of one step that may die before the step is at fault."""
_TICK = 1.0
_ROOM = 5.0
_REST = 2.0
_MOMENT = 0.5
_NAME = "the cluster"


class Team(Struct):
    """Has a build's steps made by a fleet: what ``forge.build.supply.Sharing`` is for a build on one machine.

    ``sharing`` is the shared store, which has to be read-write; ``here`` makes steps on this machine; ``mine`` is what this
    machine says of itself. ``nodes`` collects who made what: step's key -> node's name.
    """

    sharing: Sharing
    said: RemoteTable
    open_fleet: Callable[[], Fleet]
    mine: Callable[[Wanted], Facts]
    here: Callable[[Sequence[Step]], object]
    tell: Listener
    halt: Halt
    nodes: dict[str, str] = field(default_factory=dict[str, str])
    _fleet: Fleet | None = None
    _known: dict[str, Node] = field(default_factory=dict[str, Node])
    _asked: frozenset[str] = frozenset()
    _sizes: dict[str, int] = field(default_factory=dict[str, int])

    def has(self, keys: Sequence[str]) -> frozenset[str]:
        return self.sharing.has(keys)

    def send(self, artifacts: Iterable[Artifact]) -> tuple[Pushed, ...]:
        return self.sharing.send(artifacts)

    def supply(self, steps: Sequence[Step], missing: Sequence[Step], store: Store) -> Supply:
        """Have nodes make what travels of ``missing``, and take here what ``steps`` are for; the rest is to be made here."""
        lacking = {step.key for step in missing}
        travel = Travel(self.sharing.kinds)
        waits = Patience(self.tell, self.halt.check, _NAME)
        shared = self.sharing.shared

        def held(step: Step) -> bool:
            return step.key not in lacking

        moving = [step.key for step in steps if travel.travels(step)]
        there = waits.until(lambda: shared.require(moving)) if moving else frozenset[str]()
        found = travel.spread(steps, held, there)
        if found.works:
            self._spread(found, store)
        taken, made = rest(steps, tops(steps), held, lambda step: travel.travels(step) and not travel.at_home(step))
        artifacts: dict[str, Artifact] = {}
        for step in taken:
            artifact = store.find(step.key) or waits.until(partial(shared.pull, step.key, store))
            if artifact is None:
                raise StoreError(f"{step.name} was made, and is gone from the shared store", where=shared.name)
            artifacts[step.key] = artifact
        return Supply(artifacts, frozenset(step.key for step in made if store.find(step.key) is None))

    def fleet(self) -> Fleet:
        """The cluster, once; HostError where there is none."""
        self._fleet = self._fleet or self.open_fleet()
        return self._fleet

    def alike(self, wanted: Wanted) -> tuple[Node, ...]:
        """The nodes, which have to be alike where a plan needs it; HostError with all that differs.

        Each is asked whether it is alike once, and what of ``wanted`` it has each time that this names something else.
        """
        fleet = self.fleet()
        nodes = fleet.nodes()
        new = [node for node in nodes if node.id not in self._known]
        asked = new if wanted.names <= self._asked else nodes
        told = fleet.facts(asked, wanted) if asked else {}
        self._asked |= wanted.names
        mine = self.mine(wanted) if asked else None
        if new and mine:
            self._require_alike(mine, {node.name: told[node.id] for node in new})
        for node in asked:
            self._known[node.id] = self._described(self._known.get(node.id, node), told[node.id])
        self._sizes |= mine.held if mine else {}
        return tuple(self._known[node.id] for node in nodes)

    def _require_alike(self, mine: Facts, told: Mapping[str, Facts | str]) -> None:
        wrong = [each for each in differences(mine, told) if each.stops]
        if wrong:
            text = "\n    ".join(f"{each.node} {each.what}" for each in wrong)
            what = f"not all nodes can take steps of this build\n    {text}"
            raise HostError(what, where=_NAME, hint="`forge cluster check` looks closer")

    def _described(self, node: Node, told: Facts | str) -> Node:
        """The node with what it says that it has; as it was where it does not answer."""
        if isinstance(told, str):
            return node
        self._sizes |= told.held
        has, images = told.held.keys(), frozenset(told.images.values())
        return replace(
            node, folders=node.folders | told.folders, images=node.images | (images & has), holds=node.holds | (has - images)
        )

    def _spread(self, found: Spreadable, store: Store) -> None:
        nodes = self.alike(asked_of(found.works, self.said))
        require([(work.step.name, work.ask) for work in found.works], nodes)
        if found.first:
            self.here([step for step in found.first if store.find(step.key) is None])
            waits = Patience(self.tell, self.halt.check, _NAME)
            for step in found.first:
                if (held := store.find(step.key)) is not None:
                    waits.until(partial(self.sharing.shared.push, held))
        _Run(self, found.works, nodes, self._sizes).run()


def asked_of(works: Sequence[Work], said: RemoteTable) -> Wanted:
    """What nodes may have that ``works`` need, and that these do not make themselves."""
    folders = {folder for work in works for folder in work.ask.folders}
    references = {reference for work in works for reference in images((work.step, *work.local))}
    keys = {key for work in works for key in (*work.needs, *work.drawn)} - {work.key for work in works}
    return Wanted(said, *(tuple(sorted(names)) for names in (folders, references, keys)))


class _Run:
    """Works on their way over nodes, until all are made or one has failed."""

    def __init__(self, team: Team, works: Sequence[Work], nodes: Sequence[Node], sizes: Mapping[str, int]) -> None:
        self._team = team
        self._fleet = team.fleet()
        self._spread = Spread(works, nodes, sizes)
        self._works = {work.key: work for work in works}
        self._nodes = {node.id: node for node in nodes}
        self._deaths: dict[str, int] = {}
        self._silent: dict[str, float] = {}
        self._failure: ForgeError | None = None

    def run(self) -> None:
        """Returns when all is made; raises what the first failed step raised, once what is under way has ended."""
        try:
            while self._spread:
                for placed in () if self._failure else self._spread.next():
                    self._start(placed)
                if not self._spread.under_way:
                    break
                for report in self._fleet.hear(_TICK):
                    self._heard(report)
                self._team.halt.check()
                self._say_who_waits()
        except BaseException:
            self._fleet.halt()
            raise
        if self._failure:
            raise self._failure
        self._refuse_stranded()

    def _start(self, placed: Placed) -> None:
        work, node = placed.work, placed.node
        remote, owner = self._team.said, getattr(self._fleet, "owner", "")
        self._silent[work.key] = time.monotonic()
        self._fleet.start(Errand(work.step, work.key, remote, owner, work.ask.docker), work.ask, node)

    def _heard(self, report: Report) -> None:
        self._silent.pop(report.key, None)
        name = self._works[report.key].step.name
        for event in report.events:
            self._team.tell(replace(event, node=report.node))
        match report.end:
            case Made(size, fresh):
                self._team.nodes[report.key] = report.node
                self._spread.ended(report.key, size)
                if not fresh:
                    self._team.tell(Event("held", name, report.key, size=size, node=report.node))
            case Failed() as failed:
                self._failed(report, failed)
            case Lost() as lost:
                self._lost(report, lost)
            case None:
                pass

    def _failed(self, report: Report, failed: Failed) -> None:
        name, where = self._works[report.key].step.name, self._spread.under_way[report.key]
        self._spread.returned(report.key)
        if failed.here and self._elsewhere(report.key, where):
            self._drop(where, f"it is left out: {failed.what}")
            return
        error = failed.error()
        error.step = name
        busy = ", ".join(self._works[key].step.name for key in self._spread.under_way)
        text = str(error) if self._failure else f"being finished before this ends: {busy}" if busy else ""
        self._failure = self._failure or error
        self._team.tell(Event("failed", name, report.key, text=text, node=report.node))

    def _lost(self, report: Report, lost: Lost) -> None:
        """A node that is gone takes nothing any more; a process that died on one that lives is tried again."""
        name, where = self._works[report.key].step.name, self._spread.under_way[report.key]
        self._spread.returned(report.key)
        alive = {node.id for node in self._fleet.nodes()} - ({where} if lost.node and report.mine else set())
        for gone in self._nodes.keys() - alive:
            self._drop(gone, "it is gone; its steps are made elsewhere")
        if not report.mine:
            time.sleep(_MOMENT)
        elif where in alive:
            self._deaths[report.key] = self._deaths.get(report.key, 0) + 1
            if self._deaths[report.key] >= ATTEMPTS:
                what, hint = f"its process died {ATTEMPTS} times: {lost.why}", "the kernel ends processes where memory runs out"
                self._failure = self._failure or StepError(what, where=f"{name}, on {report.node}", hint=hint)
            what = f"its process ended without a word, and it is tried again ({lost.why})"
            self._team.tell(Event("note", name, report.key, text=what, node=report.node))
            if self._elsewhere(report.key, where):  # its node may be dying, which Ray finds out later
                self._drop(where, "it is left out: a process there ended without a word")
            else:
                time.sleep(_REST)

    def _elsewhere(self, key: str, node: str) -> bool:
        """Whether another node than this one can take a step."""
        return any(not other.lacks(self._works[key].ask) for other in self._nodes.values() if other.id != node)

    def _drop(self, node: str, why: str) -> None:
        gone = self._nodes.pop(node, None)
        if gone is not None:
            self._spread.without(node)
            self._team.tell(Event("note", f"node {gone.name}", text=why, node=gone.name))

    def _say_who_waits(self) -> None:
        now = time.monotonic()
        for key, since in list(self._silent.items()):
            if now - since > _ROOM and key in self._spread.under_way:
                del self._silent[key]
                node = self._nodes.get(self._spread.under_way[key])
                text = f"waits for room on {node.name if node else 'its node'}: another build is there"
                self._team.tell(Event("note", self._works[key].step.name, key, text=text, node=node.name if node else ""))

    def _refuse_stranded(self) -> None:
        if left := [(work.step.name, work.ask) for work in self._spread.stranded()]:
            require(left, tuple(self._nodes.values()))
