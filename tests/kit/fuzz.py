"""Every reader of what others write, under coverage-guided fuzzing: none may end in another error than its own.

    make fuzz CASES=10000000                 or: python tests/kit/fuzz.py --cases 10000000 [READER ...]

The cases are shared out among the readers; one that takes ten times as long as others gets a tenth. A reader gets up to 16 KiB;
it may refuse them by the errors that it names, within a second of its processor's time (ten on the clock: the machine may be
busy), in a process that may hold 256 MiB more than it held before. What is JSON is changed as JSON, too: one value in the place
of another. What it did not survive is left in tests/corpora/READER, and ``test_fuzz.py`` reads all of that at each run.
Atheris (PyPI) does the guessing; each reader has a process of its own.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

from fuzz_readers import Reader, readers

HERE = Path(__file__).parent
CORPORA = HERE.parent / "corpora"
SECONDS = 1.0
"""Of its processor's time that a reader may take: most take a millisecond."""
CLOCK = 10
MEGABYTES = 256
"""More than its process held when it began."""
_LONGEST = 16384
_INSTRUMENTED = ("forge", "tomli", "tomlkit", "google.protobuf", "prometheus_client", "securesystemslib", "zipfile")
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


def survived(one: Reader, given: bytes) -> str:
    """Why a reader did not take it as it should; empty where it did."""
    began = time.process_time()
    try:
        one.read(given)
    except one.refuses:
        pass
    except BaseException as error:  # noqa: BLE001 - whatever it is, a person would see it
        return f"{type(error).__name__}: {error}"[:500]
    seconds = time.process_time() - began
    return f"it takes {seconds:.1f} s" if seconds > SECONDS else ""


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

    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        one = readers()[name]
        for each in one.seeds:
            survived(one, each)  # what is imported late is imported now, where it is seen
    corpus.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(one.seeds):
        (corpus / f"seed-{number}").write_bytes(each)

    def ask(given: bytes) -> None:
        if said := survived(one, given):
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
    print(f"held {held} MB", file=sys.stderr)
    atheris.Setup([sys.argv[0], *words, str(corpus), str(kept)], ask, custom_mutator=_mutated)
    atheris.Fuzz()


@dataclass(frozen=True, slots=True)
class Outcome:
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


def campaign(name: str, runs: int, corpus: Path, seed: int) -> Outcome:
    """One reader in a process of its own."""
    words = [sys.executable, __file__, name, "--one", "--cases", str(runs), "--corpus", str(corpus), "--seed", str(seed)]
    began = time.monotonic()
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        words, capture_output=True, encoding="utf-8", errors="replace", check=False, env={**os.environ, "PYTHONPATH": path}
    )

    def stated(mark: str) -> int:
        return int(found[-1]) if (found := re.findall(mark + r"\s*(\d+)", done.stderr)) else 0

    more = stated("stat::peak_rss_mb:") - stated("held")
    cases, files = stated("stat::number_of_executed_units:"), len(list((corpus / name).iterdir()))
    said = (done.stdout + done.stderr[-500:])[-3000:] or "nothing"
    failed = done.returncode or cases < runs
    return Outcome(name, cases, time.monotonic() - began, more, files, said if failed else "")


def shares(cases: int, chosen: Mapping[str, Reader]) -> dict[str, int]:
    """So many cases in all, shared out by what each reader costs."""
    parts = {name: 1 / one.cost for name, one in chosen.items()}
    return {name: max(1, round(cases * part / sum(parts.values()))) for name, part in parts.items()}


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
    known = readers()
    asked = shares(given.cases, {name: known[name] for name in given.reader or known})
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for outcome in pool.map(partial(campaign, corpus=given.corpus, seed=given.seed), asked, asked.values()):
            print(outcome, *outcome.said.splitlines(), sep="\n    ", flush=True)
            outcomes.append(outcome)
    failed = [each.name for each in outcomes if each.said]
    print(
        f"{sum(each.cases for each in outcomes):,} cases of {len(outcomes)} readers, seed {given.seed}; not survived: {failed}"
    )
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
