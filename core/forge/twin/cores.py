"""Matrix-vector products of several sequences, spread over this process's cores; each bit is the same as on one core.

A core is handed whole blocks of rows and multiplies every sequence's vector with them: which core it was changes nothing in
a result. numpy gives up Python's lock while it multiplies. To wake a core costs some 50 microseconds (measured on a virtual
machine), so small products stay where they are.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .arrays import Floats

_WORTH = 6 << 20
"""Bytes of weights times sequences that are worth a core's waking: a core does some 100 a nanosecond out of its cache."""
_MOST = 4
"""Cores that are used at most: more of them wait for memory, and for each other."""
Product = tuple[Floats, Floats, Floats]
"""Blocks [b, 1, rows, inputs], vectors [1, n, inputs, 1], and where the results go [b, n, rows, 1]."""


@dataclass
class _Core:
    """One more core: a thread that sleeps between its tasks."""

    task: Sequence[Product] = ()
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

    The other half is Triton's and its models': on two cores eight streams through Triton had 105 tokens/s with both, and 142
    with one. One decoding thread uses them at a time.
    """

    def __init__(self, count: int = 0, worth: int = _WORTH) -> None:
        self._count = count or max(1, min(len(os.sched_getaffinity(0)) // 2, _MOST))
        self._worth = worth
        self._others: list[_Core] = []

    def multiply(self, products: Sequence[Product]) -> None:
        """Do them all; MemoryError, or whatever else one of them meets, is raised here."""
        size = 0
        for blocks, vectors, _ in products:
            size += blocks.nbytes * vectors.shape[1]
        count = min(self._count, size // self._worth)
        if count < 2:
            _multiply(products)
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


def _multiply(products: Sequence[Product]) -> None:
    for blocks, vectors, out in products:
        np.matmul(blocks, vectors, out=out)


def _shares(products: Sequence[Product], count: int) -> Iterator[list[Product]]:
    """The products cut between blocks into ``count`` parts of about the same bytes."""
    whole, share, filled = sum(blocks.nbytes for blocks, _, _ in products), 0, 0
    part: list[Product] = []
    for blocks, vectors, out in products:
        taken = 0
        while taken < len(blocks):
            room = (share + 1) * whole / count - filled
            cut = len(blocks) if share == count - 1 else min(len(blocks), taken + round(room / blocks[0].nbytes))
            if cut > taken:
                part.append((blocks[taken:cut], vectors, out[taken:cut]))
                filled += blocks[taken:cut].nbytes
                taken = cut
            if taken < len(blocks):
                yield part
                part, share = [], share + 1
    yield part
    yield from ([] for _ in range(count - share - 1))
