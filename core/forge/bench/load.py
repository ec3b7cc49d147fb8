"""The built-in driver: an asyncio loop that sends requests, closed by concurrency or open by rate, and notes what came when.

Between two chunks only the time is noted: text is joined and tokens are counted when the load is over. The loop does not
wait for an answer before the next request of an open loop is sent, and counts each from the moment when it was due.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from msgspec import Struct, field

from forge.bench.driver import Answer, Ask, Drive, Watch
from forge.client.types import Chunk, Request
from forge.errors import ForgeError

_HOPELESS = 100
"""Failures in a row after which a load that is bounded by time ends: a dead server fails thousands in a second."""


class Asking(Protocol):
    """What the loop needs of a client."""

    def generate(self, request: Request) -> AsyncIterator[Chunk]: ...


Connect = Callable[[str], AbstractAsyncContextManager[Asking]]
"""Opens a client to an address."""


class LoopDriver:
    """The Driver that forge brings. ``clock`` gives seconds and never goes back; ``loop`` makes the event loop to run in."""

    name = "forge"

    def __init__(
        self, connect: Connect, clock: Callable[[], float], loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._loop = loop

    def drive(self, drive: Drive, watch: Watch) -> tuple[Answer, ...]:
        with asyncio.Runner(loop_factory=self._loop) as runner:
            return runner.run(self._drive(drive, watch))

    async def _drive(self, drive: Drive, watch: Watch) -> tuple[Answer, ...]:
        async with self._connect(drive.address) as client:
            await _Run(client, drive, self._clock).closed(iter(drive.warm))
            with watch():
                run = _Run(client, drive, self._clock)
                await run.whole()
        return tuple(sorted(run.answers, key=lambda answer: answer.due))


class _Run(Struct):
    """One load under way."""

    client: Asking
    drive: Drive
    clock: Callable[[], float]
    answers: list[Answer] = field(default_factory=list[Answer])
    failures: int = 0
    began: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.clock()

    async def whole(self) -> None:
        asks = iter(self.drive.asks) if self.drive.duration is None else itertools.cycle(self.drive.asks)
        if self.drive.load.rate is None:
            await self.closed(asks)
        else:
            await self._open(asks, self.drive.load.rate)

    async def closed(self, asks: Iterator[Ask]) -> None:
        """Each of so many callers sends its next request when its last one has ended."""
        callers = self.drive.load.concurrency or 1
        await asyncio.gather(*(self._caller(asks) for _ in range(callers)))

    async def _caller(self, asks: Iterator[Ask]) -> None:
        for ask in asks:
            now = self.clock() - self.began
            if self._over(now):
                return
            await self._one(ask, now)

    async def _open(self, asks: Iterator[Ask], rate: float) -> None:
        """Requests are due at moments that no answer can put off."""
        async with asyncio.TaskGroup() as group:
            for ask, due in zip(asks, arrivals(rate, self.drive.seed), strict=False):
                if self._over(due):
                    return
                await asyncio.sleep(max(0.0, due - (self.clock() - self.began)))
                group.create_task(self._one(ask, due))

    def _over(self, moment: float) -> bool:
        return self.drive.duration is not None and (moment >= self.drive.duration or self.failures >= _HOPELESS)

    async def _one(self, ask: Ask, due: float) -> None:
        clock, began = self.clock, self.began
        marks: list[float] = []
        texts: list[str] = []
        tokens, inputs, error = 0, 0, ""
        sent = clock() - began
        try:
            async with asyncio.timeout(self.drive.patience):
                async for chunk in self.client.generate(ask.request):
                    new = chunk.output_tokens or len(chunk.tokens)
                    if chunk.index or not (chunk.text or new):
                        continue
                    marks.append(clock() - began)
                    if chunk.whole:
                        texts, tokens = [], 0
                    texts.append(chunk.text)
                    tokens += new
                    inputs = chunk.input_tokens or inputs
        except ForgeError as failure:
            error = failure.what
        except TimeoutError:
            error = f"no whole answer within {self.drive.patience:g} s"
        self.failures = self.failures + 1 if error else 0
        end = clock() - began
        self.answers.append(Answer(ask, due, sent, end, tuple(marks), "".join(texts), tokens, inputs, error))


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """The moments of a Poisson process with so many arrivals in a second on average, without end; the same for one seed."""
    chance = random.Random(seed)  # noqa: S311
    moment = 0.0
    while True:
        moment += chance.expovariate(rate)
        yield moment
