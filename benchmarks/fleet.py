"""10,000 steps on 50 simulated nodes: forge's own scheduler of a cluster, and fake work.

    python benchmarks/fleet.py [--steps 10000] [--nodes 50] [--seed 0]

Half of the nodes have two GPUs, of three kinds. A recipe is a checkpoint that is converted, and an engine for one to three
kinds of GPU; what a step takes differs from what the scheduler guesses by up to a third. Printed are the makespan over its
bound (the longest chain, or all work over all room, for each group of nodes alone too), and what a decision costs as the plan
grows.
"""

import argparse
import heapq
import random
import time
import tracemalloc
from collections.abc import Sequence

from forge.cluster.node import Ask, Node
from forge.cluster.spread import Spread, urgency
from forge.cluster.work import Work
from forge.plan.steps import Fetch, Run, Step
from forge.schema.values import Command, FileFact, Pinned, SourceKind

KINDS = ("sm_80", "sm_89", "sm_90")


def nodes(count: int) -> tuple[Node, ...]:
    """Half with GPUs, the kinds by turns; four steps side by side each."""
    return tuple(
        Node(
            f"n{number:02}",
            f"n{number:02}",
            slots=4,
            docker=True,
            sm=frozenset({KINDS[number // 2 % 3]}) if number % 2 else frozenset(),
            gpus=frozenset({"0", "1"}) if number % 2 else frozenset(),
        )
        for number in range(count)
    )


def works(count: int, chance: random.Random) -> tuple[Work, ...]:
    """Recipes until there are ``count`` steps: weights, a checkpoint, engines."""
    found: list[Work] = []
    while len(found) < count:
        name, size = f"m{len(found)}", int(chance.lognormvariate(22.5, 0.8))
        fetch = Step(f"{name}: model", Fetch(Pinned(SourceKind.HUB, name, "c", (FileFact("w", size),))))
        checkpoint = Step(f"{name}: checkpoint", Run((Command(("convert",)),)), (("model", fetch),))
        found += [
            Work(fetch, seconds=5 + size / 100e6),
            Work(checkpoint, frozenset({fetch.key}), ask=Ask(docker=True), memory=size, seconds=10 + size / 100e6),
        ]
        for sm in chance.sample(KINDS, chance.randint(1, 3)):
            engine = Step(f"{name}: engine", Run((Command(("build",)),), gpu=sm, gpus="0"), (("checkpoint", checkpoint),))
            ask = Ask(sm=sm, docker=True, gpus=frozenset({"0"}) if chance.random() < 0.5 else frozenset({"1"}))
            found.append(Work(engine, frozenset({checkpoint.key}), ask=ask, seconds=10 + size / 80e6))
    return tuple(found[:count])


def bound(found: Sequence[Work], fleet: Sequence[Node], takes: dict[str, float]) -> float:
    """Seconds below which nobody could end."""
    timed = {work.key: Work(work.step, work.needs, seconds=takes[work.key]) for work in found}
    least = [max(urgency(timed).values())]
    for ask in {work.ask for work in found}:
        able = {node.id for node in fleet if not node.lacks(ask)}
        inside = [work for work in found if {node.id for node in fleet if not node.lacks(work.ask)} <= able]
        room = sum(node.slots for node in fleet if node.id in able)
        least.append(sum(takes[work.key] for work in inside) / room)
        least.append(
            sum(takes[work.key] for work in found if work.ask == ask)
            / sum(not node.lacks(ask) if ask.gpus else node.slots for node in fleet)
        )
    return max(least)


def run(count: int, width: int, seed: int) -> tuple[float, float, float, float]:
    """(makespan over bound, seconds and bytes of the scheduler for each step, part of inputs that lay at hand)."""
    chance = random.Random(seed)
    fleet, found = nodes(width), works(count, chance)
    takes = {work.key: work.seconds * chance.uniform(0.67, 1.33) for work in found}
    began = time.process_time()
    spread = Spread(found, fleet)
    spent = time.process_time() - began
    now, clock, lies, near, drawn = 0.0, list[tuple[float, str]](), dict[str, str](), 0, 0
    while spread:
        began = time.process_time()
        for placed in spread.next():
            heapq.heappush(clock, (now + takes[placed.work.key], placed.work.key))
            near += sum(lies[need] == placed.node.id for need in placed.work.needs)
            drawn += len(placed.work.needs)
            lies[placed.work.key] = placed.node.id
        now, key = heapq.heappop(clock)
        spread.ended(key, 10**9)
        spent += time.process_time() - began
    return now / bound(found, fleet, takes), spent / count, _memory(found, fleet) / count, near / max(drawn, 1)


def _memory(found: Sequence[Work], fleet: Sequence[Node]) -> int:
    tracemalloc.start()
    spread = Spread(found, fleet)
    while spread:
        for placed in spread.next():
            spread.ended(placed.work.key, 10**9)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    print("| steps | nodes | makespan / bound | scheduler, us a step | its memory, bytes a step | inputs at hand |")
    print("|---|---|---|---|---|---|")
    for count in (said.steps // 100, said.steps // 10, said.steps):
        over, spent, memory, near = run(count, said.nodes, said.seed)
        print(f"| {count:,} | {said.nodes} | {over:.3f} | {spent * 1e6:.0f} | {memory:.0f} | {near:.0%} |")


if __name__ == "__main__":
    main()
