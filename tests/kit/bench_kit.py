"""A model under load in miniature, on a clock that only moves when everybody waits: its timing is exact, and takes no time."""

import asyncio
import selectors
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from forge.bench.driver import Answer, Ask, Drive, Load
from forge.bench.load import Asking, LoopDriver
from forge.bench.results import Record, Repeat
from forge.bench.workload import Counter
from forge.client.types import Chunk, Request
from forge.errors import InferenceError


class _Waiting(selectors.DefaultSelector):
    """Waits by moving the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += max(0.0, timeout or 0.0)
        return []


class _StillLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.waiting = _Waiting()
        super().__init__(self.waiting)

    def time(self) -> float:
        return self.waiting.now


@dataclass
class Speaker:
    """Answers with max_tokens words: the first after ``first`` seconds, the others ``gap`` apart, at most ``slots`` at once.

    A prompt that begins with "fail" is refused after ``first``; the ``stall``th request holds its place so much longer.
    ``busy`` adds up the seconds that requests were with it, each from its arrival on.
    """

    first: float = 0.1
    gap: float = 0.02
    slots: int = 1000
    stall: tuple[int, float] = (-1, 0.0)
    counts: bool = True
    asked: list[Request] = field(default_factory=list[Request])
    busy: float = 0.0
    most: int = 0
    _present: int = 0
    _places: asyncio.Semaphore | None = None

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self._places = self._places or asyncio.Semaphore(self.slots)
        number, arrived = len(self.asked), asyncio.get_running_loop().time()
        self.asked.append(request)
        self._present += 1
        self.most = max(self.most, self._present)
        try:
            async with self._places:
                await asyncio.sleep(self.first + (self.stall[1] if number == self.stall[0] else 0.0))
                if request.prompt.startswith("fail"):
                    raise InferenceError("out of memory")
                for place in range(request.max_tokens):
                    if place:
                        await asyncio.sleep(self.gap)
                    yield Chunk(f" w{place}", output_tokens=1 if self.counts else None)
                yield Chunk("", final=True)
        finally:
            self._present -= 1
            self.busy += asyncio.get_running_loop().time() - arrived

    @asynccontextmanager
    async def connect(self, address: str) -> AsyncGenerator[Asking]:
        yield self


@dataclass
class Letters:
    """A tokenizer of which every word is a token, and ``opening`` more stand before a prompt."""

    opening: int = 0
    missing: str = ""
    digest: str = "letters"

    def count(self, text: str) -> int:
        return self.opening + len(text.split())

    def spoken(self, text: str) -> int:
        return len(text.split())

    def words(self) -> tuple[str, ...]:
        return tuple(f"word{number}" for number in range(50))


def driver(speaker: Speaker) -> LoopDriver:
    """The real loop on the still clock."""
    loops: list[_StillLoop] = []

    def loop() -> asyncio.AbstractEventLoop:
        loops.append(_StillLoop())
        return loops[-1]

    connect: Callable[[str], AbstractAsyncContextManager[Asking]] = speaker.connect
    return LoopDriver(connect, lambda: loops[-1].time(), loop)  # noqa: PLW0108 - there is no loop yet


@contextmanager
def unwatched() -> Generator[None]:
    yield


def asks(count: int, tokens: int = 5, prompts: Sequence[str] = ()) -> tuple[Ask, ...]:
    texts = prompts or [f"prompt {number}" for number in range(count)]
    return tuple(Ask(Request("m", text, tokens), len(text.split())) for text in texts)


def drive(speaker: Speaker, load: Load, wanted: Sequence[Ask], **more: object) -> tuple[Answer, ...]:
    work = Drive("nowhere:1", "nowhere:2", load, wanted, **more)  # type: ignore[arg-type]
    return driver(speaker).drive(work, unwatched)


def repeat(answers: Sequence[Answer], **limits: float) -> Repeat:
    counter = Counter(Letters(), limits)
    records: tuple[Record, ...] = tuple(counter.record(answer) for answer in answers)
    return Repeat(seed=1, began=0.0, wall=max(record.end for record in records), records=records)
