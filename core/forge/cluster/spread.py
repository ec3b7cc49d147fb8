"""Which step goes to which node, and when: what the end waits for goes first, all else to where its inputs lie. Pure.

The same decisions are made for Ray and in the simulation (``benchmarks/fleet.py``). One costs the same however many steps there
are, and however many nodes: what could begin, and which nodes could take it, is kept in order and not looked for.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Set
from graphlib import TopologicalSorter
from itertools import islice

from msgspec import Struct, field

from forge.cluster.node import Ask, Node
from forge.cluster.work import Work

NETWORK = 100e6
"""Bytes a second that a node is taken to draw from the shared store."""
LOOK = 8
"""Steps of one kind that are compared for where their inputs lie."""

_Open = tuple[int, int, int, str]
"""A node that takes a step now, the best last: bytes of images held, GPUs left idle (negative), free slots, id."""
_Choice = tuple[float, float, int, int, str, str]


class Placed(Struct, frozen=True):
    """A step that begins now, and where."""

    work: Work
    node: Node


class _Room(Struct):
    """What of a node is free. ``gpus`` are those in use, ``images`` those that it holds by now."""

    node: Node
    slots: int
    images: set[str]
    gpus: set[str] = field(default_factory=set[str])
    gone: bool = False


class _Kind:
    """Steps that ask the same and stand on the same images: those that could begin, and the nodes that take one now."""

    def __init__(self, ask: Ask, images: Mapping[str, int]) -> None:
        """``images`` with their bytes."""
        self.ask = ask
        self._images = images
        self.ready: list[tuple[float, str]] = []
        """By urgency, the most urgent last."""
        self.near: dict[str, dict[str, None]] = {}
        """Node -> those that have inputs there, the latest last."""
        self.able: dict[str, frozenset[str]] = {}
        """Each node that can take one, ever -> the GPUs that it would take."""
        self.rooms: list[_Open] = []
        self._listed: dict[str, _Open] = {}

    def joins(self, room: _Room) -> None:
        if not room.node.lacks(self.ask):
            self.able[room.node.id] = room.node.taken(self.ask.gpus)
            self.look(room)

    def look(self, room: _Room) -> None:
        """See again whether a node takes one, and how well it suits."""
        node = room.node
        if (gpus := self.able.get(node.id)) is None:
            return
        if former := self._listed.pop(node.id, None):
            del self.rooms[bisect_left(self.rooms, former)]
        if room.gone:
            del self.able[node.id]
        elif room.slots > 0 and room.gpus.isdisjoint(gpus):
            held = sum(size for image, size in self._images.items() if image in room.images)
            self._listed[node.id] = now = held, len(gpus) - len(node.gpus), room.slots, node.id
            insort(self.rooms, now)

    def open(self, node: str) -> _Open | None:
        """How well a node suits that takes one now."""
        return self._listed.get(node)

    def candidates(self) -> Iterator[str]:
        """The most urgent, and those with inputs where there is room."""
        yield from (key for _, key in islice(reversed(self.ready), LOOK))
        near, listed = self.near, self._listed
        for node in near if len(near) < len(listed) else listed:
            if node in near and node in listed:
                yield from islice(reversed(near[node]), LOOK)

    def leaves(self, rank: float, key: str, nodes: Iterable[str]) -> None:
        """A step of those that could begin does."""
        del self.ready[bisect_left(self.ready, (rank, key))]
        for node in nodes:
            if there := self.near.get(node):
                there.pop(key, None)
                if not there:
                    del self.near[node]


class Spread:
    """One run of works over nodes. ``next`` says what begins; whoever runs them tells what became of each."""

    def __init__(self, works: Iterable[Work], nodes: Iterable[Node], sizes: Mapping[str, int] | None = None) -> None:
        """``sizes`` are bytes of what nodes hold, by key or name: images, and what was made before."""
        self._works = {work.key: work for work in works}
        self._rooms = {node.id: _Room(node, node.slots, set(node.images)) for node in nodes}
        self._slots = sum(room.slots for room in self._rooms.values())
        self._rank = urgency(self._works)
        self._kinds: dict[tuple[Ask, frozenset[str]], _Kind] = {}
        self._offered: dict[str, tuple[_Kind, tuple[str, ...]]] = {}
        self._under_way: dict[str, str] = {}
        self._sizes = {key: size for work in self._works.values() for key, size in work.drawn.items()} | dict(sizes or {})
        self._lies: dict[str, set[str]] = {}
        for room in self._rooms.values():
            for key in room.node.holds:
                self._lies.setdefault(key, set()).add(room.node.id)
        self._seconds = sum(work.seconds for work in self._works.values())
        self._waiting = TopologicalSorter(_needs(self._works))
        self._waiting.prepare()
        self._offer_ready()

    def __bool__(self) -> bool:
        """Whether anything is left to begin or to end."""
        return bool(self._works)

    def next(self) -> tuple[Placed, ...]:
        """All that begins now."""
        return tuple(self._next())

    def ended(self, key: str, size: int) -> None:
        """A step is made, with so many bytes."""
        work = self._works.pop(key)
        place = self._under_way[key]
        self._rooms[place].images |= work.images
        self._free(key, work)
        self._seconds -= work.seconds
        self._sizes[key] = size
        for drawn in (key, *work.needs, *work.drawn):
            self._lies.setdefault(drawn, set()).add(place)
        self._waiting.done(key)
        self._offer_ready()

    def returned(self, key: str) -> None:
        """A step was not made, by no fault of its own: it begins again, where there is room."""
        self._free(key, self._works[key])
        self._offer(key)

    def without(self, node: str) -> None:
        """A node takes nothing any more; what is under way there has to be returned or ended all the same."""
        if (room := self._rooms.get(node)) and not room.gone:
            room.gone = True
            self._slots -= room.node.slots
            for holders in self._lies.values():
                holders.discard(node)
            self._look(room)

    def stranded(self) -> Iterator[Work]:
        """Those that could begin, and that no node which is left can ever take."""
        for kind in self._kinds.values():
            if not kind.able:
                yield from (self._works[key] for _, key in kind.ready)

    @property
    def under_way(self) -> Mapping[str, str]:
        """Key -> node."""
        return self._under_way

    # -- inside

    def _offer_ready(self) -> None:
        """Those that wait for nothing any more could begin."""
        for key in self._waiting.get_ready():
            self._offer(key)

    def _offer(self, key: str) -> None:
        work = self._works[key]
        kind = self._kinds.get((work.ask, work.images))
        if kind is None:
            images = {image: self._sizes.get(image, 0) for image in work.images}
            kind = self._kinds[work.ask, work.images] = _Kind(work.ask, images)
            for room in self._rooms.values():
                if not room.gone:
                    kind.joins(room)
        near = tuple(self._near(work))
        self._offered[key] = kind, near
        insort(kind.ready, (self._rank[key], key))
        for node in near:
            kind.near.setdefault(node, {})[key] = None

    def _next(self) -> Iterator[Placed]:
        while best := max(self._choices(), default=None):
            *_, key, node = best
            work, room = self._works[key], self._rooms[node]
            kind, near = self._offered.pop(key)
            kind.leaves(self._rank[key], key, near)
            room.slots -= 1
            room.gpus |= kind.able[node]
            self._look(room)
            self._under_way[key] = node
            yield Placed(work, room.node)

    def _choices(self) -> Iterator[_Choice]:
        """The most urgent steps of each kind, and those with inputs where there is room, each with its best room.

        Urgent is what would end late even if it began now; of the rest those go first that have least to draw.
        """
        left = self._seconds / max(self._slots, 1) / 2
        for kind in self._kinds.values():
            if kind.rooms and kind.ready:
                for key in kind.candidates():
                    rank = self._rank[key]
                    saved, (*_, slots, node) = self._best(self._works[key], kind)
                    yield max(0.0, rank - left) + saved / NETWORK, rank, -len(kind.able), slots, key, node

    def _best(self, work: Work, kind: _Kind) -> tuple[int, _Open]:
        """Where most of its inputs and images lie, where its memory suffices, and not where others alone could go."""
        suits = self._suits(work, kind.rooms[-1], 0)
        if not suits[1]:  # the best has not the memory: another of as many bytes may have
            suits = max(self._suits(work, room, 0) for room in kind.rooms)
        for node, bytes_there in self._near(work).items():
            if room := kind.open(node):
                suits = max(suits, self._suits(work, room, bytes_there))
        return suits[0], suits[2]

    def _suits(self, work: Work, room: _Open, inputs: int) -> tuple[int, bool, _Open]:
        memory = self._rooms[room[-1]].node.memory
        return room[0] + inputs, memory >= work.memory or not memory, room

    def _near(self, work: Work) -> dict[str, int]:
        """Bytes of a step's inputs by the node that has them."""
        found: dict[str, int] = {}
        for need in (*work.needs, *work.drawn):
            for node in self._lies.get(need, ()):
                found[node] = found.get(node, 0) + self._sizes.get(need, 0)
        return found

    def _look(self, room: _Room) -> None:
        for kind in self._kinds.values():
            kind.look(room)

    def _free(self, key: str, work: Work) -> None:
        room = self._rooms[self._under_way.pop(key)]
        room.slots += 1
        room.gpus -= room.node.taken(work.ask.gpus)
        self._look(room)


def urgency(works: Mapping[str, Work]) -> dict[str, float]:
    """Seconds from the beginning of each step to the end of the last that waits for it, with as many nodes as it takes."""
    needs, rank = _needs(works), dict.fromkeys(works, 0.0)
    for key in reversed(tuple(TopologicalSorter(needs).static_order())):
        rank[key] += works[key].seconds
        for need in needs[key]:
            rank[need] = max(rank[need], rank[key])
    return rank


def _needs(works: Mapping[str, Work]) -> dict[str, Set[str]]:
    """Those of a step's inputs that are made, too."""
    return {key: work.needs & works.keys() for key, work in works.items()}
