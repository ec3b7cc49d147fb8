"""forge in an event loop: each verb of Forge as a Work, which is awaited for its result and iterated for its events."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import suppress
from threading import Thread
from typing import Concatenate, Generic, ParamSpec, TypeVar

from forge.api.forge import Forge
from forge.events import Event, Listener
from forge.settings import Executor

P = ParamSpec("P")
T = TypeVar("T")


class Work(Generic[T]):
    """One verb under way, in a thread of its own.

    ``await`` gives what Forge's method returns, and raises what it raises (ForgeError and its children). ``async for`` gives
    its events in order, from the first on, until it ends; the lines of programs (``log``) are among those of ``logs()`` only.
    Where the task that awaits it is cancelled, or ``cancel()`` is called, it ends as by Ctrl-C: containers and processes are
    stopped, what was made is kept, and CancelledError comes when all of that is done.
    """

    def __init__(self, forge: Callable[[Listener], Forge], verb: Callable[[Forge], T]) -> None:
        self._loop = asyncio.get_running_loop()
        self._told: list[Event] = []
        self._news = asyncio.Event()
        self._cancelled = False
        self._result: asyncio.Future[T] = self._loop.create_future()
        self._result.add_done_callback(lambda _: self._news.set())
        self._forge = forge(self._tell)
        Thread(target=self._run, args=(verb,), name="forge", daemon=True).start()

    def __await__(self) -> Generator[object, None, T]:
        return self._ended().__await__()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events(logs=False)

    def logs(self) -> AsyncIterator[Event]:
        """Its events, the lines of programs among them."""
        return self._events(logs=True)

    def cancel(self) -> None:
        """End it as Ctrl-C does."""
        self._cancelled = True
        self._forge.halt()

    async def _ended(self) -> T:
        try:
            return await asyncio.shield(self._result)
        except asyncio.CancelledError:
            if not self._result.done():
                self.cancel()
                await asyncio.wait([self._result])
            raise

    async def _events(self, *, logs: bool) -> AsyncIterator[Event]:
        told = 0
        while told < len(self._told) or not self._result.done():
            if told == len(self._told):
                self._news.clear()
                await self._news.wait()
                continue
            told += 1
            if logs or self._told[told - 1].kind != "log":
                yield self._told[told - 1]

    def _run(self, verb: Callable[[Forge], T]) -> None:
        try:
            result = verb(self._forge)
        except KeyboardInterrupt:
            self._post(self._result.cancel)
        except BaseException as error:  # noqa: BLE001 - carried to whoever awaits it
            self._post(functools.partial(self._result.set_exception, error))
        else:
            self._post(functools.partial(self._result.set_result, result))

    def _tell(self, event: Event) -> None:
        if self._cancelled:  # in the thread of the verb, which learns of it here
            raise KeyboardInterrupt
        self._post(functools.partial(self._heard, event))

    def _heard(self, event: Event) -> None:
        self._told.append(event)
        self._news.set()

    def _post(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(call)


def _verb(method: Callable[Concatenate[Forge, P], T]) -> "Callable[Concatenate[AsyncForge, P], Work[T]]":
    @functools.wraps(method)
    def begin(of: "AsyncForge", /, *args: P.args, **options: P.kwargs) -> Work[T]:
        return Work(of.forge, lambda forge: method(forge, *args, **options))

    return begin


class AsyncForge:
    """The verbs of Forge for an event loop: each takes what Forge's takes, begins at once, and gives a Work.

    Every Work has a thread, and a Forge, of its own, so that one can be cancelled and the others go on. Answers of served
    models stream by ``forge.client.AsyncClient``.
    """

    def __init__(self, forge: Callable[[Listener], Forge]) -> None:
        """``forge`` makes the Forge of one piece of work, with the listener that it tells."""
        self.forge = forge

    @classmethod
    def here(cls, *, jobs: int | None = None, executor: Executor | None = None, remote: str | None = None) -> "AsyncForge":
        """For the home folder of this user, as Forge.here()."""
        return cls(functools.partial(Forge.here, jobs=jobs, executor=executor, remote=remote))

    examine = _verb(Forge.examine)
    plan = _verb(Forge.plan)
    foresee = _verb(Forge.foresee)
    fit = _verb(Forge.fit)
    lock = _verb(Forge.lock)
    build = _verb(Forge.build)
    add = _verb(Forge.add)
    make = _verb(Forge.make)
    fetch = _verb(Forge.fetch)
    search = _verb(Forge.search)
    remove = _verb(Forge.remove)
    models = _verb(Forge.models)
    run = _verb(Forge.run)
    serve = _verb(Forge.serve)
    servers = _verb(Forge.servers)
    server = _verb(Forge.server)
    reload = _verb(Forge.reload)
    stop = _verb(Forge.stop)
    target = _verb(Forge.target)
    check = _verb(Forge.check)
    verify = _verb(Forge.verify)
    bench = _verb(Forge.bench)
