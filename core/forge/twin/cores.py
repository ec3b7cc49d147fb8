"""Products of weights with several sequences' vectors, spread over this process's cores; each bit is the same as on one core.

A core is handed whole parts of the weights and multiplies every sequence's vector with them: which core it was changes nothing
in a result. Whoever multiplies gives up Python's lock meanwhile. To wake a core costs some 50 microseconds (measured on a
virtual machine), so small products stay where they are.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

_WORTH = 12 << 20
"""Bytes of weights times sequences that are worth a core's waking: by machine code a core does some 200 a nanosecond."""
_MOST = 4
"""Cores that are used at most: more of them wait for memory, and for each other."""


class Product(Protocol):
    """Weights to be multiplied with vectors, in parts that any core can do."""

    @property
    def parts(self) -> int: ...

    @property
    def size(self) -> int:
        """Bytes of a part's weights, times the vectors."""
        ...

    def multiply(self, first: int, last: int) -> None:
        """Does the parts from ``first`` to before ``last``; their results have a place of their own."""
        ...


Task = tuple[Product, int, int]
"""A product, and which of its parts are to be done."""


@dataclass
class _Core:
    """One more core: a thread that sleeps between its tasks."""

    task: Sequence[Task] = ()
    failed: BaseException | None = None
    begin: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    done: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def run(self) -> None:
        with np.errstate(over="ignore", under="ignore"):
            while True:
                self.begin.acquire()
                try:
                    _multiply(self.task)
                except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
                    self.failed = error
                self.task = ()
                self.done.release()


class Cores:
    """``count`` cores, this thread's own among them; by itself half of those that this process may use, 4 at most.

    The other half is Triton's and its models': on two cores eight streams through Triton had 105 tokens/s by numpy with both,
    and 142 with one. One decoding thread uses them at a time.
    """

    def __init__(self, count: int = 0, worth: int = _WORTH) -> None:
        self._count = count or max(1, min(len(os.sched_getaffinity(0)) // 2, _MOST))
        self._worth = worth
        self._others: list[_Core] = []

    def multiply(self, products: Sequence[Product]) -> None:
        """Do them all; MemoryError, or whatever else one of them meets, is raised here."""
        count = min(self._count, sum(product.parts * product.size for product in products) // self._worth)
        if count < 2:
            _multiply([(product, 0, product.parts) for product in products])
            return
        mine, *shares = _shares(products, count)
        others = self._awake(count - 1)
        for core, share in zip(others, shares, strict=True):
            core.task = share
            core.begin.release()
        try:
            _multiply(mine)
        finally:
            for core in others:
                core.done.acquire()
        for core in others:
            if failed := core.failed:
                core.failed = None
                raise failed

    def _awake(self, count: int) -> list[_Core]:
        while len(self._others) < count:
            core = _Core()
            threading.Thread(target=core.run, name="multiplying", daemon=True).start()
            self._others.append(core)
        return self._others[:count]


def _multiply(tasks: Sequence[Task]) -> None:
    for product, first, last in tasks:
        product.multiply(first, last)


def _shares(products: Sequence[Product], count: int) -> Iterator[list[Task]]:
    """The products cut between parts into ``count`` shares of about the same size."""
    whole, share, filled = sum(product.parts * product.size for product in products), 0, 0
    tasks: list[Task] = []
    for product in products:
        taken = 0
        while taken < product.parts:
            room = (share + 1) * whole / count - filled
            last = product.parts if share == count - 1 else min(product.parts, taken + round(room / product.size))
            if last > taken:
                tasks.append((product, taken, last))
                filled += (last - taken) * product.size
                taken = last
            if taken < product.parts:
                yield tasks
                tasks, share = [], share + 1
    yield tasks
    yield from ([] for _ in range(count - share - 1))
