"""How many of each verb were killed, by whom they were hit, and how far they had come."""

from collections import Counter
from dataclasses import dataclass, field

import msgspec

VICTIMS = ("forge", "session", "child", "triton", "server", "container", "shim", "dockerd")
"""forge itself; its whole session; a process that it started; Triton; another of a server's processes; Docker's."""
Hit = tuple[str, str, int]
"""Verb, victim, and the third of the verb's usual time in which it died."""


@dataclass
class Tally:
    """Kills that landed while the command ran, and the ``late`` ones that found it ended, which do not count."""

    hits: Counter[Hit] = field(default_factory=Counter[Hit])
    late: int = 0
    commands: int = 0
    faults: list[str] = field(default_factory=list[str])

    @property
    def total(self) -> int:
        return self.hits.total()

    def add(self, other: "Tally") -> None:
        self.hits += other.hits
        self.late += other.late
        self.commands += other.commands
        self.faults += other.faults

    def table(self) -> str:
        """Verb by victim, and when: the first, second and last third."""
        verbs = sorted({verb for verb, _, _ in self.hits})
        rows: list[tuple[str, ...]] = [("", *VICTIMS, "all", "when")]
        for verb in (*verbs, ""):
            mine = {hit: count for hit, count in self.hits.items() if verb in ("", hit[0])}
            by = [sum(count for hit, count in mine.items() if hit[1] == victim) for victim in VICTIMS]
            when = "/".join(str(sum(count for hit, count in mine.items() if hit[2] == third)) for third in range(3))
            rows.append((verb or "all", *map(str, by), str(sum(by)), when))
        return "\n".join(f"{row[0]:14}" + "".join(f"{cell:>10}" for cell in row[1:-1]) + f"   {row[-1]}" for row in rows)

    def encoded(self) -> bytes:
        return msgspec.json.encode([[[*hit, count] for hit, count in self.hits.items()], self.late, self.commands, self.faults])


def decoded(text: bytes) -> Tally:
    """What another process of the campaign has counted."""
    hits, late, commands, faults = msgspec.json.decode(text, type=tuple[list[tuple[str, str, int, int]], int, int, list[str]])
    counted = Counter({(verb, victim, third): count for verb, victim, third, count in hits})
    return Tally(counted, late, commands, faults)
