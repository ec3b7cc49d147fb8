"""Which step goes to which node, and when: what the end waits for goes first, all else to where its inputs lie. Pure.

The same decisions are made for Ray and in the simulation (``benchmarks/fleet.py``). One costs the same however many steps there
are.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from forge.cluster.node import Ask, Node
from forge.cluster.work import Work

NETWORK = 100e6
"""Bytes a second that a node is taken to draw from the shared store."""
LOOK = 8
"""Steps of one kind of ask that are compared for where their inputs lie."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A step that begins now, and where."""

    work: Work
    node: Node


@dataclass
class _Room:
    """What of a node is free. ``gpus`` are those in use."""

    node: Node
    slots: int
    gpus: set[str] = field(default_factory=set[str])
    gone: bool = False

    def takes(self, ask: Ask) -> bool:
        return self.slots > 0 and not self.gone and self.gpus.isdisjoint(self.node.taken(ask.gpus))


class Spread:
    """One run of works over nodes. ``next`` says what begins; whoever runs them tells what became of each."""

    def __init__(self, works: Iterable[Work], nodes: Iterable[Node], sizes: Mapping[str, int] | None = None) -> None:
        """``sizes`` are bytes of results that are in the shared store already."""
        self._works = {work.key: work for work in works}
        self._rooms = {node.id: _Room(node, node.slots) for node in nodes}
        self._lacks = {work.key: set(work.needs & self._works.keys()) for work in self._works.values()}
        self._followers: dict[str, list[str]] = {}
        for key, lacks in self._lacks.items():
            for need in lacks:
                self._followers.setdefault(need, []).append(key)
        self._rank = urgency(self._works, self._followers)
        self._ready: dict[Ask, list[tuple[float, str]]] = {}
        self._able: dict[Ask, frozenset[str]] = {}
        self._under_way: dict[str, str] = {}
        self._sizes = dict(sizes or {})
        self._lies: dict[str, set[str]] = {}
        self._nearby: dict[str, dict[str, None]] = {}
        self._seconds = sum(work.seconds for work in self._works.values())
        for key, lacks in self._lacks.items():
            if not lacks:
                self._offer(key)

    def __bool__(self) -> bool:
        """Whether anything is left to begin or to end."""
        return bool(self._works)

    def next(self) -> tuple[Placed, ...]:
        """All that begins now."""
        return tuple(self._next())

    def ended(self, key: str, size: int, node: str = "") -> None:
        """A step is made, with so many bytes, on ``node`` where that is another than it was sent to."""
        place = self._free(key)
        work = self._works.pop(key)
        self._seconds -= work.seconds
        self._sizes[key] = size
        self._lies.setdefault(key, set()).add(node or place)
        for need in work.needs:  # it was drawn there
            self._lies.setdefault(need, set()).add(node or place)
        for follower in self._followers.pop(key, ()):
            lacks = self._lacks[follower]
            lacks.discard(key)
            if not lacks:
                self._offer(follower)

    def returned(self, key: str) -> None:
        """A step was not made, by no fault of its own: it begins again, where there is room."""
        self._free(key)
        self._offer(key)

    def without(self, node: str) -> None:
        """A node takes nothing any more; what is under way there has to be returned or ended all the same."""
        if room := self._rooms.get(node):
            room.gone = True
            for holders in self._lies.values():
                holders.discard(node)
            self._able = {ask: able - {node} for ask, able in self._able.items()}

    def stranded(self) -> Iterator[Work]:
        """Those that could begin, and that no node which is left can ever take."""
        for ask, ready in self._ready.items():
            if ready and not self._able[ask]:
                yield from (self._works[key] for _, key in ready)

    @property
    def under_way(self) -> Mapping[str, str]:
        """Key -> node."""
        return self._under_way

    # -- inside

    def _offer(self, key: str) -> None:
        ask = self._works[key].ask
        if ask not in self._able:
            able = (room.node for room in self._rooms.values() if not room.gone)
            self._able[ask] = frozenset(node.id for node in able if not node.lacks(ask))
        insort(self._ready.setdefault(ask, []), (self._rank[key], key))
        for node in self._near(self._works[key]):
            self._nearby.setdefault(node, {})[key] = None

    def _next(self) -> Iterator[Placed]:
        while best := max(self._choices(), default=None):
            *_, key, node = best
            work, room = self._works[key], self._rooms[node]
            ready = self._ready[work.ask]
            del ready[bisect_left(ready, (self._rank[key], key))]
            for nearby in self._nearby.values():
                nearby.pop(key, None)
            room.slots -= 1
            room.gpus |= room.node.taken(work.ask.gpus)
            self._under_way[key] = node
            yield Placed(work, room.node)

    def _choices(self) -> Iterator[tuple[float, float, int, int, str, str]]:
        """The most urgent steps of each kind of ask, and those with inputs where there is room, each with its best room.

        Urgent is what would end late even if it began now; of the rest those go first that have least to draw.
        """
        slots = sum(room.node.slots for room in self._rooms.values() if not room.gone)
        left = self._seconds / max(slots, 1) / 2
        for ask, keys in self._candidates():
            rooms = [self._rooms[node] for node in self._able[ask] if self._rooms[node].takes(ask)]
            for key in keys if rooms else ():
                near, rank = self._near(self._works[key]), self._rank[key]
                room = max(rooms, key=partial(self._suits, self._works[key], near))
                saved = near.get(room.node.id, 0) / NETWORK
                yield max(0.0, rank - left) + saved, rank, -len(self._able[ask]), room.slots, key, room.node.id

    def _candidates(self) -> Iterator[tuple[Ask, list[str]]]:
        near: dict[Ask, list[str]] = {}
        for node, keys in self._nearby.items():
            room = self._rooms[node]
            for key in islice(reversed(keys), LOOK if room.slots > 0 else 0):
                if room.takes(ask := self._works[key].ask):
                    near.setdefault(ask, []).append(key)
        for ask, ready in self._ready.items():
            if ready:
                yield ask, [*(key for _, key in islice(reversed(ready), LOOK)), *near.get(ask, ())]

    def _near(self, work: Work) -> dict[str, int]:
        """Bytes of a step's inputs by the node that has them."""
        found: dict[str, int] = {}
        for need in work.needs:
            for node in self._lies.get(need, ()):
                found[node] = found.get(node, 0) + self._sizes.get(need, 0)
        return found

    def _suits(self, work: Work, near: Mapping[str, int], room: _Room) -> tuple[int, bool, int, int, str]:
        """Where its inputs lie, where its memory suffices, and not where others alone could go."""
        node = room.node
        spare = -len(node.gpus - node.taken(work.ask.gpus))
        return near.get(node.id, 0), node.memory >= work.memory or not node.memory, spare, room.slots, node.id

    def _free(self, key: str) -> str:
        node = self._under_way.pop(key)
        room = self._rooms[node]
        room.slots += 1
        room.gpus -= room.node.taken(self._works[key].ask.gpus)
        return node


def urgency(works: Mapping[str, Work], followers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Seconds from the beginning of each step to the end of the last that waits for it, with as many nodes as it takes."""
    rank: dict[str, float] = {}
    waiting = {key: len(followers.get(key, ())) for key in works}
    todo = [key for key, count in waiting.items() if not count]
    while todo:
        key = todo.pop()
        rank[key] = works[key].seconds + max((rank[each] for each in followers.get(key, ())), default=0.0)
        for need in works[key].needs & works.keys():
            waiting[need] -= 1
            if not waiting[need]:
                todo.append(need)
    return rank
