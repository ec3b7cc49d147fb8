"""Work that waits for a network, done side by side on threads; whoever asked hears of it on their own."""

from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Generic, TypeVar

from msgspec import Struct

T = TypeVar("T")
R = TypeVar("R")

LANES = 8


class _Done(Struct, Generic[R], frozen=True):
    results: tuple[R, ...] = ()
    error: BaseException | None = None


def each(tasks: Iterable[T], do: Callable[[T], R], heard: Callable[[R], None], patience: float) -> None:
    """``do`` each task, and tell ``heard`` each result, in the order in which they come.

    TimeoutError where nothing comes for ``patience`` seconds: a folder on a network that is away never answers. The first
    error is raised at once and nothing new begins; what is under way ends by itself, unheard. Its threads keep no process
    alive, so Ctrl-C ends it.
    """
    waiting: SimpleQueue[T] = SimpleQueue()
    for task in tasks:
        waiting.put(task)
    count = waiting.qsize()
    ended: SimpleQueue[_Done[R]] = SimpleQueue()
    enough = Event()
    for number in range(min(LANES, count)):
        Thread(target=_work, args=(waiting, do, ended, enough), name=f"forge: remote {number}", daemon=True).start()
    try:
        for _ in range(count):
            done = ended.get(timeout=patience)
            if done.error is not None:
                raise done.error
            for result in done.results:
                heard(result)
    except Empty:
        raise TimeoutError(f"no answer for {patience:.0f} s") from None
    finally:
        enough.set()


def once(do: Callable[[], R], patience: float) -> R:
    """What ``do`` returns; TimeoutError where it does not within ``patience`` seconds."""
    found: list[R] = []
    each((do,), lambda do: do(), found.append, patience)
    return found[0]


def _work(waiting: SimpleQueue[T], do: Callable[[T], R], ended: "SimpleQueue[_Done[R]]", enough: Event) -> None:
    while not enough.is_set():
        try:
            task = waiting.get_nowait()
        except Empty:
            return
        try:
            ended.put(_Done((do(task),)))
        except BaseException as error:  # noqa: BLE001 - carried to the thread that asked, and raised there
            ended.put(_Done(error=error))
            return
