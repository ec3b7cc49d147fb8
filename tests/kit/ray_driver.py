"""A build of steps that are shell commands, spread over a Ray cluster: as a program, so that it can be killed.

    python ray_driver.py HOME URL '{"count": 4, "seconds": 0.3, "ran": "/tmp/ran"}'

Each step notes its name in the file ``ran`` when it begins, and again when it ends. Events come out as JSON, one a line.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import asdict

from forge.api.cluster import Cluster
from forge.api.wiring import Wiring
from forge.build.builder import Builder
from forge.cluster.team import Team
from forge.events import Event, Listener
from forge.plan.steps import LayTexts, Run, Step
from forge.schema.values import Command, TextFile
from forge.settings import RemoteTable
from forge.store.store import Artifact, Store


class Plan(Struct, frozen=True):
    """``count`` checkpoints, each with an engine on it where ``sm`` names the GPU, and a list that the driver lays.

    Steps last ``seconds``, or until the file ``gate`` is there; each writes so many ``kilobytes`` besides.
    """

    ran: str
    count: int = 4
    seconds: float = 0.2
    sm: str = ""
    failing: str = ""
    name: str = "m"
    gate: str = ""
    kilobytes: int = 0

    def steps(self) -> tuple[Step, ...]:
        found: list[Step] = []
        tops: list[Step] = []
        for number in range(self.count):
            name = f"{self.name}{number}"
            checkpoint = Step(f"{name}: checkpoint", Run((self._command(f"{name}-c", ""),)), promises=("x",))
            found.append(checkpoint)
            if self.sm:
                run = Run((self._command(f"{name}-e", "cat /forge/checkpoint/x;"),), gpu=self.sm, gpus="0")
                found.append(Step(f"{name}: engine", run, (("checkpoint", checkpoint),), promises=("x",)))
            tops.append(found[-1])
        texts = LayTexts((TextFile("list", self.name),))
        return (*found, Step("list", texts, tuple((f"n{at}", top) for at, top in enumerate(tops))))

    def _command(self, word: str, before: str) -> Command:
        fails = "echo it cannot be; exit 3;" if self.failing and word.startswith(self.failing) else ""
        wait = f"until [ -e {self.gate} ]; do sleep 0.1; done" if self.gate else f"sleep {self.seconds}"
        fill = f"; head -c {self.kilobytes}k /dev/zero" if self.kilobytes else ""
        made = f"({before} echo {word}{fill}) > /forge/out/x || exit 4"
        script = f"echo {word} begins >> {self.ran}; echo working on {word}; {wait}; {fails} {made}"
        return Command(("sh", "-c", f"{script}; echo {word} ends >> {self.ran}"))


def team(home: Path, url: str, tell: Listener, access: str = "read-write") -> tuple[Team, Builder, Store]:
    """What ``forge build --executor ray`` works with in this home."""
    environ = dict(os.environ)
    wiring = Wiring(home, environ, lambda text: tell(Event("note", "facts", text=text)))
    store = Store(home / "store", clock=time.time)
    said = RemoteTable(url=url, access="read-write" if access == "read-write" else "read-only", deadline=5.0)
    alone = Builder(store, wiring.tools, tell)
    found = Cluster(wiring, wiring.sharing(said, tell, time.time, wiring.notary(said, store)), said, tell, alone.realise).team
    return found, Builder(store, wiring.tools, tell, shared=found), store


def build(home: Path, url: str, plan: Plan, tell: Listener) -> Mapping[str, Artifact]:
    """All of ``plan`` in the store of ``home``."""
    return team(home, url, tell)[1].realise(plan.steps())


def main(words: Sequence[str]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    home, url, plan = Path(words[0]), words[1], Plan(**json.loads(words[2]))
    try:
        build(home, url, plan, lambda event: print(json.dumps(asdict(event)), flush=True))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
