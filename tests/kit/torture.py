"""A campaign of kills: forge, its children and its servers die at random instants of random commands, and nothing may be lost.

    make torture MINUTES=60                  or: python tests/kit/torture.py --minutes 60 --seed 7

After every kill one more command runs to its end, as a person's next one would. Then a model that nobody touched is still
there, no publish stands half way, what is served answers, and no command hung or ended in a traceback. In the end no process,
no shared memory and no port is left, and the store's every byte is right. The same seed gives the same commands; when they are
killed depends on the machine.
"""

import argparse
import json
import os
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from forge.machine.processes import SHARED_MEMORY
from forge.serve.state import States
from forked import Forked, warm

PATIENCE = 300.0
"""Seconds after which a command hangs."""
NAMES = ("one", "two", "three")
REFUSED = (0, 5, 6, 7, 8, 9, 10, 11)
"""Exit codes that a command may have after others were killed: it worked, or it said why not. 1 is a traceback's."""
VICTIMS = ("forge", "group", "child", "server")
Words = tuple[str, ...]


@dataclass
class Campaign:
    """One home, one repository, three recipes, and whatever came of them."""

    folder: Path
    home: Path
    random: Random
    ports: tuple[int, ...]
    faults: list[str] = field(default_factory=list[str])
    kills: Counter[str] = field(default_factory=Counter[str])
    usual: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds that a verb took when nobody killed it."""
    present: set[str] = field(default_factory=set[str])
    """Models that have to be in the repository."""
    history: list[str] = field(default_factory=list[str])

    @property
    def repository(self) -> Path:
        return self.folder / "models"

    def __str__(self) -> str:
        return f"{len(self.history)} lines of history, kills {dict(self.kills)}, {len(self.faults)} faults"

    # -- one command

    def run(self, words: Words, *, killed: bool = False) -> tuple[int, str]:
        """Its exit code (negative: the signal) and all that it said."""
        began, said = time.monotonic(), self.folder / "said"
        process, ended = Forked(words, self.home, self.folder, said), False
        if killed:
            ended = process.wait(self.random.uniform(0, 1.1 * self.usual.get(words[0], 2.0))) is not None
            self._kill(process)
        if (code := process.wait(PATIENCE)) is None:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait(PATIENCE) or 0
            self.fault(f"`forge {' '.join(words)}` hangs")
        text, seconds = said.read_text(encoding="utf-8", errors="replace"), time.monotonic() - began
        self.history.append(f"{'killed ' if killed else ''}forge {' '.join(words)} -> {code} after {seconds:.2f} s")
        usual = self.usual.get(words[0], seconds)
        self.usual[words[0]] = 0.5 * (usual + seconds) if ended or not killed else 1.03 * usual
        if "Traceback (most recent call last)" in text:
            self.fault(f"`forge {' '.join(words)}` ended in a traceback:\n{text[-3000:]}")
        return code, text

    def _kill(self, process: Forked) -> None:
        """Kill one of all that there is; nothing where the command has ended and nobody else is there."""
        living = [] if process.code is not None else [process.pid]
        found: dict[str, list[int]] = {
            "forge": living,
            "group": living,
            "child": self._below(process.pid) if living else [],
            "server": self.mine(),
        }
        victims = [name for name in VICTIMS if found[name]]
        if not victims:
            self.history.append("  nobody is there any more to be killed")
            return
        victim = self.random.choice(victims)
        with suppress(ProcessLookupError):
            (os.killpg if victim == "group" else os.kill)(self.random.choice(found[victim]), signal.SIGKILL)
            self.kills[victim] += 1
            self.history.append(f"  the next is killed: {victim}")

    def _below(self, pid: int) -> list[int]:
        found: list[int] = []
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                for child in map(int, (task / "children").read_text().split()):
                    found += [child, *self._below(child)]
        return found

    def mine(self) -> list[int]:
        """Every living process that was told of this campaign's folders: all but this one and the commands themselves."""
        marks, found = [str(place).encode() for place in (self.folder, self.home)], list[int]()
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit():
                    told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                    if any(mark in told for mark in marks) and int(entry.name) != os.getpid():
                        found.append(int(entry.name))
        return found

    def fault(self, what: str) -> None:
        """Note it, and say it at once: a campaign may take hours."""
        self.faults.append(what + "\n    " + "\n    ".join(self.history[-8:]))
        print(f"- {self.faults[-1]}", flush=True)

    # -- what may happen

    def turn(self) -> None:
        """One command that is killed, one that is not, and a look at what is left."""
        words, touched = self._drawn()
        before = set(self.present)
        self.run(words, killed=True)
        code, text = self.run(self.random.choice([("list", "--json"), ("status",), ("check", str(self.repository)), ("ps",)]))
        if code not in REFUSED:
            self.fault(f"the next command ends with {code}: {text[-1000:]}")
        self.look(before - touched)

    def _drawn(self) -> tuple[Words, set[str]]:
        """A command, and the models that it may change."""
        name = self.random.choice(NAMES)
        recipe = self.folder / f"{name}.toml"
        if self.random.random() < 0.5:
            size = self.random.choice((2, 3, 4))
            text = recipe.read_text(encoding="utf-8")
            recipe.write_text(text[: text.index("max_batch_size")] + f"max_batch_size = {size}\n", encoding="utf-8")
        where = ("--repository", str(self.repository))
        http, grpc, metrics = map(str, self.ports)
        ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics)
        alone = self.present <= {name}  # then it may have plain names, until another comes
        drawn: list[tuple[Words, set[str]]] = [
            (("build", recipe.name, *(() if alone else ("--prefixed",)), *where), set()),
            (("add", recipe.name, "--rename-plain", *where), set()),
            (("remove", name, *where), {name}),
            (("cache", "gc"), set()),
            (("cache", "verify"), set()),
            (("lock", recipe.name), set()),
            (("serve", "--detach", *where, *ports), set()),
            (("reload", *where), set()),
            (("stop", *where), set()),
        ]
        return self.random.choices(drawn, (4, 4, 2, 1, 1, 1, 3, 1, 1))[0]

    def look(self, certain: set[str]) -> None:
        """Whether everything is as it has to be; what is listed now has to be there from now on."""
        code, text = self.run(("list", "--json", "--repository", str(self.repository)))
        listed = {each["name"] for each in json.loads(text.splitlines()[-1]).get("models", [])} if code == 0 else set[str]()
        if certain - listed:
            self.fault(f"lost: {', '.join(sorted(certain - listed))}; list says {text[-600:]}")
        self.present = listed
        if (self.repository / ".forge").exists():
            self.fault(f"a publish stands half way: {sorted(each.name for each in (self.repository / '.forge').rglob('*'))}")
        if listed:
            code, text = self.run(("check", str(self.repository)))
            if code != 0 and "no server" not in text:
                self.fault(f"check finds {text[-1500:]}")
        if listed and self.random.random() < 0.3:
            self._ask(sorted(listed))

    def _ask(self, listed: list[str]) -> None:
        """What a server of the repository says of itself, and that each model there answers."""
        where = ("--repository", str(self.repository))
        self.run(("reload", *where))
        code, _ = self.run(("status",))
        if code == 0 and self.run(("serve", "--print", *where))[0] == 0 and self._up():
            for name in listed:
                code, text = self.run(("generate", name, "hello", "--max-tokens", "2", *where))
                if code != 0 and self._up():
                    self.fault(f"{name} is served and does not answer: {text[-800:]}")

    def _up(self) -> bool:
        code, text = self.run(("status", "--json"))
        if code or not text.strip():
            return False
        told: dict[str, list[object]] = json.loads(text.splitlines()[-1])
        return bool(told.get("servers"))

    def end(self) -> None:
        """Stop all, and look for what is left of it."""
        for words in (("stop", "--all"), ("status",), ("cache", "gc"), ("cache", "verify")):
            code, text = self.run(words)
            if code not in (0, 9, 10):
                self.fault(f"`forge {' '.join(words)}` in the end says {code}: {text[-1500:]}")
        patience = time.monotonic() + 30
        while (left := self.mine()) and time.monotonic() < patience:
            time.sleep(0.2)
        if left:
            self.fault(f"processes are left: {[Path(f'/proc/{pid}/cmdline').read_bytes() for pid in left]}")
        mark = States(self.home / "servers").marker(self.repository)
        if regions := sorted(each.name for each in SHARED_MEMORY.glob(f"*{mark}*")):
            self.fault(f"shared memory is left: {', '.join(regions)}")
        for port in self.ports:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                self.fault(f"somebody still listens at {port}")
        if staged := [each.name for each in (self.home / "store" / "staging").glob("*")]:
            self.fault(f"the store's staging holds {staged}")
        code, text = self.run(("build", f"{NAMES[0]}.toml", "--prefixed", "--repository", str(self.repository)))
        if code:
            self.fault(f"nothing can be built in the end: {text[-1500:]}")

    def prove(self) -> None:
        """That a loss would have been found."""
        before = len(self.faults)
        self.look({"nobody"})
        if not any(fault.startswith("lost: nobody") for fault in self.faults[before:]):
            self.faults.append("a model that never was is not missed: this campaign finds nothing")
        else:
            del self.faults[before:]

    def begin(self, lay: Callable[[Path], None]) -> None:
        """Lay a checkpoint and its recipes, and build one, which makes the environment that all need."""
        from tiny_served import RECIPE

        lay(self.folder / "checkpoint")
        warm()
        for name in NAMES:
            text = RECIPE.replace('name = "tiny"', f'name = "{name}"').replace("max_batch_size = 8\n", "")
            text = text.replace("[build]\n", "").replace("max_input_len = 128\nmax_seq_len = 256\nmax_beam_width = 4\n", "")
            lengths = "\n[build]\nmax_input_len = 128\nmax_seq_len = 256\nmax_batch_size = 2\n"
            (self.folder / f"{name}.toml").write_text(text + lengths, encoding="utf-8")
        code, text = self.run(("build", f"{NAMES[0]}.toml", "--prefixed", "--repository", str(self.repository)))
        if code:
            raise SystemExit(f"the first build fails: {text}")
        self.usual.clear()  # what comes now has an environment
        self.present = {NAMES[0]}


def spend(campaign: Campaign, seconds: float, most: int = 10**9) -> None:
    """Turns until the time is over, or so many were killed; then the end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and campaign.kills.total() < most and len(campaign.faults) < 5:
        told = campaign.kills.total()
        campaign.turn()
        if campaign.kills.total() // 25 > told // 25:
            print(f"{time.strftime('%H:%M:%S')} {campaign}", flush=True)
    campaign.end()


def main() -> int:
    from patience import spare
    from tiny_served import checkpoint

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--kills", type=int, default=10**9, help="it ends after so many")
    parser.add_argument("--home", type=Path, help="a home of forge's with an environment that is made already")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forge-torture-") as name:
        folder = Path(name)
        campaign = Campaign(folder, given.home or folder / "home", Random(given.seed), spare(3))
        campaign.begin(checkpoint)
        spend(campaign, given.minutes * 60, given.kills)
        campaign.prove()
    print(f"seed {given.seed}: {campaign.kills.total()} kills, {campaign}")
    for fault in campaign.faults:
        print(f"- {fault}")
    return 1 if campaign.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
