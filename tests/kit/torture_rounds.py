"""Eight builders of one repository at the same time, with gc, verify and remove beside them, round after round.

    make torture ROUNDS=200                  or: python tests/kit/torture_rounds.py --rounds 200 --seed 7

In each round every builder's recipe may change, so that some of them want the same artifact at the same moment, and gc would
like to take what nobody holds any more. Nobody is killed here (torture.py does that): so every build has to work, what was
built is there, whole, and nothing else. After each round no process, lock, journal or temporary file is left.
"""

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from forked import Forked, warm
from patience import spare
from torture import PATIENCE, Campaign
from torture_turns import NAMES, REFUSED, Words, lay

BUILDERS = 8


@dataclass
class Done:
    """One command of a round."""

    words: Words
    code: int
    text: str


@dataclass
class Crowd:
    """The rounds of one campaign: its home, its repository and eight recipes."""

    campaign: Campaign
    rounds: int = 0

    def round(self) -> None:
        """Everybody at once, and then a look at what is left."""
        dice, where = self.campaign.random, ("--repository", str(self.campaign.repository))
        names = [f"m{number}" for number in range(BUILDERS)]
        for name in names:
            lay(self.campaign.folder / f"{name}.toml", dice.choice((256, 320, 384)))
        verbs: list[Words] = [dice.choice((("add",), ("build", "--prefixed"))) for _ in names]
        builds: list[Words] = [(*verb, f"{name}.toml", *where) for verb, name in zip(verbs, names, strict=True)]
        gone = dice.choice(names)
        beside: list[Words] = [("cache", "gc"), ("cache", "verify"), ("remove", gone, *where)]
        done = self._together([*builds, *beside])
        for each in done[:BUILDERS]:
            if each.code:
                self._fault(each, "a build does not work")
        for each in done[BUILDERS:]:
            if each.code not in REFUSED:
                self._fault(each, "a command beside the builders fails")
        self.rounds += 1
        self._look({*names} - {gone}, {gone})

    def _look(self, certain: set[str], doubtful: set[str]) -> None:
        campaign, where = self.campaign, str(self.campaign.repository)
        listed, checked = self._together([("list", "--json", "--repository", where), ("check", where)])
        found = {each["name"] for each in json.loads(listed.text.splitlines()[-1])["models"]} if not listed.code else set[str]()
        if not certain <= found <= certain | doubtful:
            self._fault(listed, f"there should be {sorted(certain)}")
        if checked.code:
            self._fault(checked, "what was published is not right")
        files = [*(campaign.home / "store" / "staging").glob("*"), *(campaign.folder / "tmp").glob("*")]
        if left := [*campaign.left(), *map(str, files)]:
            campaign.fault(f"left after a round: {left}")

    def _fault(self, done: Done, why: str) -> None:
        self.campaign.fault(f"{why}: `forge {' '.join(done.words)}` says {done.code}: {done.text[-1500:]}")

    def _together(self, commands: Sequence[Words]) -> list[Done]:
        """Each in a process of its own, which has imported forge already."""
        files = [self.campaign.folder / f"said-{number}" for number in range(len(commands))]
        processes = [
            Forked(words, self.campaign.home, self.campaign.folder, file) for words, file in zip(commands, files, strict=True)
        ]
        done: list[Done] = []
        for words, process, file in zip(commands, processes, files, strict=True):
            if (code := process.wait(PATIENCE)) is None:
                self.campaign.fault(f"`forge {' '.join(words)}` hangs")
                os.kill(process.pid, signal.SIGKILL)
                code = process.wait(PATIENCE) or 1
            done.append(Done(words, code, file.read_text(encoding="utf-8")))
            self.campaign.history.append(f"forge {' '.join(words)} -> {code}")
            if "Traceback (most recent call last)" in done[-1].text:
                self._fault(done[-1], "a traceback")
        return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--home", type=Path, help="a home of forge's with an environment that is made already")
    given = parser.parse_args()
    warm()
    with tempfile.TemporaryDirectory(prefix="forge-rounds-") as name:
        folder = Path(name)
        campaign = Campaign(folder, given.home or folder / "home", Random(given.seed), spare(3))
        crowd, faults = gather(campaign), campaign.tally.faults
        began = time.monotonic()
        while crowd.rounds < given.rounds and len(faults) < 5:
            crowd.round()
            if crowd.rounds % 5 == 0:
                seconds = (time.monotonic() - began) / crowd.rounds
                print(f"{crowd.rounds} rounds, {seconds:.1f} s each, {len(faults)} faults", flush=True)
        spent = os.times()
        campaign.end()
        cost = f"{(spent.children_user + spent.children_system) / max(1, crowd.rounds):.1f} s of a processor each"
        print(f"seed {given.seed}: {crowd.rounds} rounds of {BUILDERS} builders, {len(faults)} faults, {cost}")
        for fault in faults:
            print(f"- {fault}")
        return bool(faults)


def gather(campaign: Campaign) -> Crowd:
    """A crowd whose environment is made."""
    campaign.begin()
    if code := campaign.run(("remove", NAMES[0], "--repository", str(campaign.repository)))[0]:
        raise SystemExit(f"the first model cannot be removed: {code}")
    return Crowd(campaign)


if __name__ == "__main__":
    raise SystemExit(main())
