"""A campaign of kills: forge, its children, its servers and Docker die at random instants, and nothing may be lost.

    make torture KILLS=1000                  or: python tests/kit/torture.py --kills 1000 --seed 7
    make torture MINUTES=60                  for so long, however many that are

A kill counts that landed while the command ran. After each one more command runs to its end, as a person's next one would. Then
nothing of what is over is left (torture_left.py), a model that nobody touched is still there, what is served answers, and no
command hung or ended in a traceback. In the end the store's every byte is right. Several homes run beside each other, one with
containers (torture_docker.py). A seed gives the same commands; when they die depends on the machine.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from forge.serve.state import States
from forked import Forked, warm
from standin import checkpoints
from torture_left import in_time, told
from torture_tally import Tally, decoded
from torture_turns import LONG, NAMES, REFUSED, Turn, Words, deck, lay, short, turn

PATIENCE = 300.0
"""Seconds after which a command hangs."""
ANSWERS = 60.0
"""Seconds that a server has to answer in after a command saw to it."""
MANY = 10**9


@dataclass
class Campaign:
    """One home, two repositories, three recipes, and whatever came of them."""

    folder: Path
    home: Path
    random: Random
    ports: tuple[int, ...]
    tally: Tally = field(default_factory=Tally)
    usual: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds that a verb took when nobody killed it."""
    listed: dict[Path, dict[str, str]] = field(default_factory=dict[Path, dict[str, str]])
    """What has to be in each repository: model -> prefix, empty where its names are plain."""
    deck: list[str] = field(default_factory=list[str])
    short: bool = False
    """Each verb once, and then again."""
    share: float = 1.0
    """Of all kills, at most."""
    history: list[str] = field(default_factory=list[str])

    @property
    def repository(self) -> Path:
        return self.folder / "models"

    @property
    def plain(self) -> Path:
        """Where one model has plain names, until it makes room for another."""
        return self.folder / "plain"

    @property
    def served(self) -> bool:
        return bool(States(self.home / "servers").kept())

    # -- one command

    def run(self, words: Words, verb: str = "") -> tuple[int, str]:
        """Its exit code (negative: the signal) and all that it said; of a ``verb`` that is given it is killed."""
        began, said = time.monotonic(), self.folder / "said"
        process, landed = Forked(words, self.home, self.folder, said), False
        if verb:
            usual = self.usual.get(verb, 1.0)
            instant = self.random.uniform(0, 1.05 * usual)
            landed = process.wait(instant) is None and self._kill(process, verb, min(2, int(3 * instant / usual)))
            self.tally.late += not landed
        if (code := process.wait(PATIENCE)) is None:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait(PATIENCE) or 0
            self.fault(f"`forge {' '.join(words)}` hangs")
        text, seconds = said.read_text(encoding="utf-8", errors="replace"), time.monotonic() - began
        self.tally.commands += 1
        self.history.append(f"{'killed ' if landed else ''}forge {' '.join(words)} -> {code} after {seconds:.2f} s")
        if verb:
            usual = self.usual.get(verb, seconds)
            self.usual[verb] = 1.03 * usual if landed else 0.5 * (usual + seconds)
        if "Traceback (most recent call last)" in text:
            self.fault(f"`forge {' '.join(words)}` ended in a traceback:\n{text[-3000:]}")
        return code, text

    def _kill(self, process: Forked, verb: str, third: int) -> bool:
        """Kill one of all that there is; whether that was while the command ran, which stands still until it is found."""
        os.kill(process.pid, signal.SIGSTOP)
        try:
            if process.wait(0) is not None:
                return False
            found = {victim: pids for victim, pids in self.victims(process.pid).items() if pids}
            victim = self.random.choice(list(found))
            (os.killpg if victim == "session" else os.kill)(self.random.choice(found[victim]), signal.SIGKILL)
        except ProcessLookupError:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
        self.tally.hits[verb, victim, third] += 1
        self.history.append(f"  the next is killed: {victim}")
        return True

    def victims(self, pid: int) -> dict[str, list[int]]:
        """Who may die while a command runs."""
        below, others = descendants(pid), told(self.folder, self.home)
        triton = [each for each in others if _program(each) == "tritonserver"]
        rest = [each for each in others if each not in (*triton, *below, pid)]
        return {"forge": [pid], "session": [pid], "child": below, "triton": triton, "server": rest}

    def fault(self, what: str) -> None:
        """Note it, and say it at once: a campaign may take hours."""
        self.tally.faults.append(what + "\n    " + "\n    ".join(self.history[-8:]))
        print(f"- {self.folder.name}: {self.tally.faults[-1]}", flush=True)

    # -- what may happen

    def turn(self) -> None:
        """One command that is killed, one that is not, and a look at what is left."""
        if not self.deck:
            self.run(("stop", "--all"))
            self.deck = (short if self.short else deck)(self.random)
        drawn, before = turn(self, self.deck[0]), self.tally.total
        self.run(drawn.words, drawn.verb)
        if self.tally.total > before:
            self.deck.pop(0)
        self.next(drawn)
        for each in self.left():
            self.fault(f"left after the next command: {each}")
        if drawn.repository or drawn.verb == "gc":
            self.look(drawn.repository or self.repository, drawn.touched)
        if self.served and self.random.random() < 0.2:
            self._ask(sorted(self.listed.get(self.repository, {})))

    def next(self, drawn: Turn) -> None:
        """What a person would do then: look at the repository that was being changed, or at what runs."""
        where = ("--repository", str(drawn.repository or self.repository))
        anything: list[Words] = [("list", "--json", *where), ("status",), ("ps",)]
        code, text = self.run(anything[0] if drawn.repository else self.random.choice(anything))
        if code not in REFUSED:
            self.fault(f"the next command says {code}: {text[-1000:]}")

    def left(self) -> list[str]:
        return in_time(self.folder, self.home, (self.repository, self.plain), self.ports)

    def look(self, repository: Path, touched: frozenset[str] = frozenset()) -> None:
        """Whether everything is as it has to be; what is listed now has to be there from now on."""
        code, text = self.run(("list", "--json", "--repository", str(repository)))
        models: list[dict[str, str]] = json.loads(text.splitlines()[-1]).get("models", []) if code == 0 else []
        listed = {each["name"]: each["prefix"] for each in models}
        if lost := sorted(self.listed.get(repository, {}).keys() - touched - listed.keys()):
            self.fault(f"lost: {', '.join(lost)}; list says {text[-600:]}")
        self.listed[repository] = listed
        if listed:
            code, text = self.run(("check", str(repository)))
            if code != 0 and "no server" not in text:
                self.fault(f"check finds {text[-1500:]}")

    def _ask(self, listed: list[str]) -> None:
        """What a server of the repository says of itself, and that each model there answers."""
        where = ("--repository", str(self.repository))
        self.run(("reload", *where))
        for name in listed:
            until = time.monotonic() + ANSWERS
            while (said := self.run(("generate", name, "hello", "--max-tokens", "2", *where)))[0] and self._up():
                if time.monotonic() > until:
                    self.fault(f"{name} is served and does not answer: {said[1][-800:]}")
                    break

    def _up(self) -> bool:
        code, text = self.run(("status", "--json"))
        return not code and bool(text.strip()) and bool(json.loads(text.splitlines()[-1]).get("servers"))

    def end(self) -> None:
        """Stop all, and look for what is left of it."""
        for words in (("stop", "--all"), ("status",), ("cache", "gc"), ("cache", "verify")):
            code, text = self.run(words)
            if code not in (0, 9, 10):
                self.fault(f"`forge {' '.join(words)}` in the end says {code}: {text[-1500:]}")
        for each in self.left():
            self.fault(f"left in the end: {each}")
        if staged := [each.name for each in (self.home / "store" / "staging").glob("*")]:
            self.fault(f"the store's staging holds {staged}")
        code, text = self.run(("build", f"{NAMES[0]}.toml", "--prefixed", "--repository", str(self.repository)))
        if code:
            self.fault(f"nothing can be built in the end: {text[-1500:]}")

    def misses_a_loss(self) -> bool:
        """Whether a loss would have been found."""
        before = len(self.tally.faults)
        self.listed.setdefault(self.repository, {})["nobody"] = ""
        self.look(self.repository)
        found = [fault for fault in self.tally.faults[before:] if fault.startswith("lost: nobody")]
        del self.tally.faults[before:]
        return bool(found)

    def begin(self) -> None:
        """Lay a checkpoint and its recipes, and build one, which makes the environment that all need."""
        checkpoints.llama(self.folder / "checkpoint", LONG)
        for name in NAMES:
            lay(self.folder / f"{name}.toml")
        code, text = self.run(("build", f"{NAMES[0]}.toml", "--prefixed", "--repository", str(self.repository)))
        if code:
            raise SystemExit(f"the first build fails: {text}")
        self.listed[self.repository] = {NAMES[0]: NAMES[0]}


def descendants(pid: int) -> list[int]:
    """All that a process started, and what that started."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def _program(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    return ""


@dataclass(frozen=True)
class Spent:
    """When campaigns beside each other are over: by time, or by their kills together, each a byte of one file."""

    deadline: float
    most: int
    killed: Path

    @classmethod
    def of(cls, seconds: float, most: int, killed: Path) -> "Spent":
        killed.touch()
        return cls(time.monotonic() + seconds, most, killed)

    @property
    def over(self) -> bool:
        return time.monotonic() > self.deadline or self.killed.stat().st_size >= self.most

    def on(self, campaign: Campaign) -> None:
        """Turns until it is over; then the end."""
        while not self.over and len(campaign.tally.faults) < 5:
            before = campaign.tally.total
            if before > max(3, campaign.share * self.killed.stat().st_size):
                time.sleep(1)
                continue
            campaign.turn()
            with self.killed.open("ab") as file:
                file.write(b"." * (campaign.tally.total - before))
            if campaign.tally.total // 25 > before // 25:
                total = self.killed.stat().st_size
                print(
                    f"{time.strftime('%H:%M:%S')} {campaign.folder.name}: {campaign.tally.total} kills, {total} in all",
                    flush=True,
                )
        campaign.end()


@contextmanager
def beside(place: Path, work: Callable[[], Tally]) -> Generator[Callable[[], Tally]]:
    """A process of its own that does it; what it counted is there once it is over."""
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            place.write_bytes(work().encoded())
            code = 0
        except BaseException:  # noqa: BLE001 - as Python itself would say it
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def counted() -> Tally:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return decoded(place.read_bytes()) if code == 0 else Tally(faults=[f"{place.name} ended with {code}"])

    try:
        yield counted
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        raise


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="it ends after so many, 5 where no kills are said")
    parser.add_argument("--kills", type=int, help="it ends after so many")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--homes", type=int, default=2, help="so many beside each other")
    parser.add_argument("--short", action="store_true", help="each verb as often as any other")
    parser.add_argument("--no-docker", dest="docker", action="store_false", help="leave out the course in containers")
    parser.add_argument("--home", type=Path, help="a home of forge's with an environment that is made already")
    given = parser.parse_args()
    given.minutes = given.minutes or (5.0 if given.kills is None else MANY)
    given.kills = given.kills or MANY
    if given.home and (kept := [*States(given.home / "servers").kept()]):
        raise SystemExit(f"a server of {kept[0].repository} runs in {given.home}: a campaign stops and kills what runs there")
    return given


def _stop(*_: object) -> None:
    """SIGTERM ends a campaign as Ctrl-C does."""
    raise KeyboardInterrupt


def main() -> int:
    from torture_course import campaigns

    given, began = arguments(), time.monotonic()
    signal.signal(signal.SIGTERM, _stop)
    warm()
    with tempfile.TemporaryDirectory(prefix="forge-torture-", ignore_cleanup_errors=True) as name:
        try:
            tally = campaigns(given, Path(name))
        finally:
            for pid in told(Path(name)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    print(tally.table())
    late, minutes = f"{tally.late} more came too late", f"{(time.monotonic() - began) / 60:.0f} min"
    print(f"seed {given.seed}: {tally.total} kills ({late}), {tally.commands} commands, {minutes}, {len(tally.faults)} faults")
    for fault in tally.faults:
        print(f"- {fault}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
