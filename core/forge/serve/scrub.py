"""Reads what is served again in the background, the files whose check is longest ago first, on a small part of one core.

Nothing is stopped or changed: what is rotten is noted for ``forge status`` and said in the log. What the system still has in
its memory is not read from the disk; that is also what a server would be given.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from forge.errors import ForgeError
from forge.files import copies
from forge.repository import publish
from forge.serve.digests import Due, files, judge, looked
from forge.store.checks import Rot, Seen
from forge.store.store import Store

SHARE = 0.05
"""Of one core, at most."""
DAY = 86400.0
"""Seconds after which a file is read again."""
LOOK = 60.0
"""Seconds between two looks whether a file is due, at most."""
_PIECE = 2**20
_PARTS = 16
"""All files are looked at so many times while each is read once: what comes up in between is seen, and a million cost no more
each than ten."""
_FEW = 64
_UNSAVED = 3.0
"""Seconds of a core whose reading is lost where this process is killed, or ten times what saving takes."""


class Ended(Exception):  # noqa: N818 - no error
    """The server is gone, or this process is asked to end."""


def rest(cpu: float, share: float = SHARE) -> float:
    """Seconds to do nothing after ``cpu`` seconds of a core, so that all in all at most ``share`` of one is used."""
    return cpu * (1 / share - 1)


class Scrub:
    """Scrubs the repositories of one server.

    ``cpu`` gives seconds of processor that this thread has used, ``pause`` waits for seconds and says whether to end.
    """

    def __init__(
        self,
        store: Store,
        cpu: Callable[[], float],
        pause: Callable[[float], bool],
        now: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self._store, self._cpu, self._pause, self._now, self._say = store, cpu, pause, now, say
        self._spent = self._saved = cpu()
        self._saving = 0.0
        self._waiting: list[Due] = []
        """What is due, the most so at the end."""
        self._fresh: dict[Path, dict[str, Seen]] = {}
        """What was found whole and is not noted yet."""

    def run(self, repositories: Callable[[], Sequence[Path]], after: float) -> None:
        """Read each file that was not read for ``after`` seconds, until ``pause`` says that it is enough."""
        try:
            with suppress(Ended):
                while True:
                    try:
                        waiting = self.look(repositories(), after)
                    except (ForgeError, OSError) as error:  # a store that is away: it may be there next time
                        self._say(f"scrub: {error}")
                        waiting = LOOK
                    self._rest()
                    self._wait(waiting)
        finally:
            self._save()

    def look(self, repositories: Sequence[Path], after: float) -> float:
        """Read the file that is due most, if one is; seconds until the next one may be."""
        if not self._waiting:
            self._save()
            ages = [aged for place in repositories for aged in self._ages(place)]
            oldest = max((age for age, _, _ in ages), default=0.0)
            if not ages or oldest < after:
                return min(LOOK, after - oldest)
            first = heapq.nlargest(max(_FEW, len(ages) // _PARTS), ages, key=lambda each: each[:2])
            self._waiting = [due for age, _, due in reversed(first) if age >= after]
        self._read(self._waiting.pop())
        if not self._waiting or self._cpu() - self._saved > max(_UNSAVED, 10 * self._saving):
            self._save()
        return 0.0

    # -- inside

    def _save(self) -> None:
        """Note what was found whole."""
        began = self._cpu()
        for place, fresh in self._fresh.items():
            self._store.checks.keep(place, self._store.checks.seen(place) | fresh)
        self._fresh.clear()
        self._saved = self._cpu()
        self._saving = self._saved - began

    def _ages(self, place: Path) -> Iterator[tuple[float, str, Due]]:
        """Every file with the seconds since it was last read; one that was found rotten was read then."""
        rotten = {(rot.model, rot.file): rot.found for rot in self._store.checks.rotten(place)}
        seen, now = self._store.checks.seen(place), self._now()
        for due in (each for model in publish.inventory(place).models for each in files(place, model, self._store)[0]):
            read = rotten.get((due.model, due.entry.path), 0.0)
            with suppress(OSError):  # it is gone, which the reading says
                last = seen.get(due.entry.path)
                read = max(read, last.at if last and last.fits(looked(due)) else 0.0)
            # What the clock said before it was put back tells nothing of how long ago that was.
            yield now - read if read <= now + LOOK else now, str(due.place), due

    def _read(self, due: Due) -> None:
        found = judge(due, self._now(), lambda place, _: copies.read_through(place, _PIECE, after=lambda _: self._rest()))
        place, path, checks = due.repository, due.entry.path, self._store.checks
        others = tuple(rot for rot in checks.rotten(place) if (rot.file, rot.model) != (path, due.model))
        if isinstance(found, Rot):
            self._say(f"ROTTEN: {place}: {found}; it goes on being served; `forge build` of its recipe fixes it")
            self._save()
            checks.keep(place, {each: seen for each, seen in checks.seen(place).items() if each != path})
            checks.note(place, (*others, found))
        elif isinstance(found, Seen):
            self._fresh.setdefault(place, {})[path] = found
            if others != checks.rotten(place):
                checks.note(place, others)
        else:
            self._say(f"scrub: {found}")
            self._waiting.clear()
            self._wait(LOOK)

    def _rest(self) -> None:
        before, self._spent = self._spent, self._cpu()
        self._wait(rest(self._spent - before))

    def _wait(self, seconds: float) -> None:
        if self._pause(seconds):
            raise Ended
