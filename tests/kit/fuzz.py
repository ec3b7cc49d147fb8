"""Every reader of what others write, under coverage-guided fuzzing: none may end in another error than its own.

    make fuzz CASES=10000000                 or: python tests/kit/fuzz.py --cases 10000000 [READER ...]

Every reader has 50,000 of the cases (half of its even share, where that is less). What each took for them says how the rest is
shared out, so that all read for as long. A reader gets up to 16 KiB; it may refuse them by the errors that it names, within a
second of its processor's time (ten on the clock: the machine may be busy), in a process that may hold 256 MiB more than before.
It may write in a folder of its own and nowhere else, and start and call nothing (``confined.py``). What is JSON is changed as
JSON, too: one value in the place of another. What a reader did not survive is left in tests/corpora/READER, which
``test_fuzz.py`` reads at each run. Atheris (PyPI) does the guessing; each reader has a process of its own.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, cast

from msgspec import Struct
from msgspec.structs import replace

from confined import confined
from fuzz_readers import Reader, readers

HERE = Path(__file__).parent
CORPORA = HERE.parent / "corpora"
SECONDS = 1.0
"""Of its processor's time that a reader may take: most take a millisecond."""
CLOCK = 10
MEGABYTES = 256
"""More than its process held when it began."""
FLOOR = 50_000
"""Cases that every reader has, however slow it is."""
_FAST = "/dev/shm"
"""Where files lie that are read a thousand times a second, if it is there."""
_LONGEST = 16384
_ARCHIVES = ("zipfile", "tarfile")
_INSTRUMENTED = ("forge", "tomli", "tomlkit", "google.protobuf", "prometheus_client", "securesystemslib", *_ARCHIVES)
"""What guides the guesses: Python alone. Of JSON, which msgspec reads, only what forge makes of it does."""
_ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**63,
    2**64,
    1e308,
    0.5,
    "",
    "a",
    "\0",
    "\ud800",
    "../a",
    "9" * 400,
    [],
    {},
    [[]],
    {"a": {}},
)
"""Values that stand where others are looked for."""


def survived(one: Reader, given: bytes, folder: Path) -> str:
    """Why a reader, which has ``folder`` for what it writes, did not take it as it should; empty where it did."""
    said, began = "", time.process_time()
    with confined(folder) as outside:
        try:
            one.read(given, folder)
        except one.refuses:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, a person would see it
            said = f"{type(error).__name__}: {error}"[:500]
    if outside:
        return f"it reached out: {outside[0]}"
    seconds = time.process_time() - began
    return said or (f"it takes {seconds:.1f} s" if seconds > SECONDS else "")


def changed(document: object, dice: Random) -> object:
    """A document of JSON with one value in the place of another, one less, or one twice."""
    places: list[tuple[Any, Any]] = []
    rest: list[Any] = [document]
    while rest:
        held = rest.pop()
        keys: list[Any] = []
        if isinstance(held, dict):
            keys = list(cast("dict[str, object]", held))
        elif isinstance(held, list):
            keys = list(range(len(cast("list[object]", held))))
        places += [(held, key) for key in keys]
        rest += [held[key] for key in keys]
    if not places:
        return dice.choice(_ODD)
    held, key = dice.choice(places)
    if dice.random() < 0.2:
        del held[key]
    elif dice.random() < 0.2:
        other, name = dice.choice(places)
        held[key] = json.loads(json.dumps(other[name]))
    else:
        held[key] = dice.choice(_ODD)
    return document


def _mutated(given: bytes, most: int, seed: int) -> bytes:
    """As libFuzzer does it; half of what is JSON as JSON."""
    import atheris

    dice = Random(seed)
    if given[:1] in (b"{", b"[") and dice.random() < 0.5:
        try:
            made = json.dumps(changed(json.loads(given), dice)).encode()
        except (ValueError, RecursionError):
            made = b""
        if 0 < len(made) <= most:
            return made
    return atheris.Mutate(given, most)


def fuzz(name: str, runs: int, corpus: Path, seed: int) -> None:
    """Read guesses until one is not survived, or so many were; the process ends here."""
    import atheris

    folder = Path(tempfile.mkdtemp()).resolve()
    for module in _ARCHIVES:  # imported before anything could look on
        sys.modules.pop(module, None)
    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        one = readers()[name]
        for each in one.seeds:
            survived(one, each, folder)  # what is imported late is imported now, where it is seen
    corpus.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(one.seeds):
        (corpus / f"seed-{number}").write_bytes(each)

    def ask(given: bytes) -> None:
        if said := survived(one, given, folder):
            # As libFuzzer calls it: that writes none where a thread of the reader is still there.
            (kept / f"crash-{hashlib.sha1(given, usedforsecurity=False).hexdigest()}").write_bytes(given)
            raise RuntimeError(said)

    kept = CORPORA / name
    kept.mkdir(parents=True, exist_ok=True)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    words = [
        f"-runs={runs}",
        f"-seed={seed}",
        f"-timeout={CLOCK}",
        f"-rss_limit_mb={held + MEGABYTES}",
        f"-max_len={_LONGEST}",
        f"-artifact_prefix={kept}/",
        "-verbosity=0",
        "-print_final_stats=1",
    ]
    print(f"held {held} MB, began {time.monotonic_ns()}", file=sys.stderr)
    atheris.Setup([sys.argv[0], *words, str(corpus), str(kept)], ask, custom_mutator=_mutated)
    atheris.Fuzz()


class Outcome(Struct, frozen=True):
    """What became of a reader: how many cases it took, how long, how much memory more than it began with."""

    name: str
    cases: int
    seconds: float
    megabytes: int
    grown: int
    """Files that its corpus has now."""
    said: str = ""
    """The end of what it said where it did not survive."""

    def __str__(self) -> str:
        told = f"{self.name}: {self.cases:,} cases, {self.seconds:.0f} s, {self.megabytes} MB more than at its start"
        return f"{told}, a corpus of {self.grown}, {'NOT survived' if self.said else 'survived'}"

    def after(self, before: "Outcome") -> "Outcome":
        """Both together."""
        most = max(self.megabytes, before.megabytes)
        return replace(self, cases=self.cases + before.cases, seconds=self.seconds + before.seconds, megabytes=most)


Ask = tuple[str, int, int]
"""A reader, how many cases, and the seed."""


class Campaign:
    """Readers in processes of their own, so many at a time; their folders are in ``scratch``."""

    def __init__(self, corpus: Path, scratch: Path, jobs: int) -> None:
        self._corpus, self._scratch, self._jobs = corpus, scratch, jobs
        self._running: set[subprocess.Popen[str]] = set()

    def run(self, asks: Iterable[Ask]) -> dict[str, Outcome]:
        """What became of each, told as it ends; nothing runs on where this is broken off."""
        outcomes: dict[str, Outcome] = {}
        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                for outcome in pool.map(self.one, asks):
                    print(outcome, *outcome.said.splitlines(), sep="\n    ", flush=True)
                    outcomes[outcome.name] = outcome
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for each in tuple(self._running):
                    each.kill()
                raise
        return outcomes

    def one(self, ask: Ask) -> Outcome:
        name, runs, seed = ask
        words = [
            sys.executable,
            __file__,
            name,
            "--one",
            "--cases",
            str(runs),
            "--corpus",
            str(self._corpus),
            "--seed",
            str(seed),
        ]
        path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
        done = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(self._scratch)},
        )
        self._running.add(done)
        began, (out, err) = time.monotonic(), done.communicate()
        self._running.discard(done)

        def stated(mark: str) -> int:
            return int(found[-1]) if (found := re.findall(mark + r"\s*(\d+)", err)) else 0

        seconds = time.monotonic() - (stated("began") / 1e9 or began)
        more = stated("stat::peak_rss_mb:") - stated("held")
        cases, place = stated("stat::number_of_executed_units:"), self._corpus / name
        said = (out + err[-500:])[-3000:] or "nothing"
        failed = done.returncode or cases < runs
        return Outcome(name, cases, seconds, more, len(list(place.iterdir())) if place.is_dir() else 0, said if failed else "")


def rest(cases: int, had: Mapping[str, Outcome]) -> dict[str, int]:
    """What is left of so many cases in all, shared out so that every reader will have read for as long as the others.

    One that has read for longer already gets none.
    """
    speeds = {name: one.cases / max(one.seconds, 1e-3) for name, one in had.items() if not one.said}
    while speeds:
        left = cases - sum(one.cases for name, one in had.items() if name not in speeds)
        time_each = left / sum(speeds.values())
        late = [name for name in speeds if speeds[name] * time_each <= had[name].cases]
        if not late:
            return {name: round(speed * time_each) - had[name].cases for name, speed in speeds.items()}
        for name in late:
            del speeds[name]
    return {}


@contextmanager
def _scratch() -> Generator[Path]:
    """A folder for all that readers write, which is gone whatever ends this process but SIGKILL."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with tempfile.TemporaryDirectory(prefix="forge-fuzz-", dir=_FAST if Path(_FAST).is_dir() else None) as folder:
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def whole(cases: int, seed: int, names: Iterable[str], run: Callable[[Iterable[Ask]], Mapping[str, Outcome]]) -> list[Outcome]:
    """A campaign of so many cases in all: what became of each reader."""
    known = tuple(names)
    first = max(1, min(FLOOR, cases // (2 * len(known))))
    had = dict(run((name, first, seed) for name in known))
    more = run((name, count, seed + 1) for name, count in rest(cases, had).items() if count > 0)
    return [more[name].after(one) if name in more else one for name, one in had.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="*")
    parser.add_argument("--cases", type=int, default=1_000_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="readers at the same time")
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "forge-fuzz")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        fuzz(given.reader[0], given.cases, given.corpus / given.reader[0], given.seed)
        return 0
    began = time.monotonic()
    with _scratch() as scratch:
        campaign = Campaign(given.corpus, scratch, given.jobs)
        outcomes = whole(given.cases, given.seed, given.reader or readers(), campaign.run)
    print("", *outcomes, sep="\n")
    failed, total = [each.name for each in outcomes if each.said], sum(each.cases for each in outcomes)
    took = f"{time.monotonic() - began:.0f} s"
    print(f"{total:,} cases of {len(outcomes)} readers, seed {given.seed}, {took}; not survived: {failed}")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
