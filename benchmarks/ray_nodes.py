"""12 recipes of steps that take 20 s each, on four real Ray nodes of the loopback: how long beside the best there could be.

    python benchmarks/ray_nodes.py [--recipes 12] [--seconds 20] [--nodes 4] [--cpus 8]

A recipe is a checkpoint and an engine on it. Steps sleep, so that four nodes fit on one machine; all else is real: Ray, a
process for each step, the shared store in a folder. A node makes one step at a time. Printed are the makespan over its bound
(all work over all nodes), what a build of which all is made costs, and the machine's load before and after. ``--cpus`` is what
a node says that it has: Ray has as many processes ready, as where `forge node labels` has said how a node joins.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kit"))

from ray_cluster import RayCluster
from ray_driver import Plan, build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--cpus", type=int, default=8)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forge-ray-") as folder:
        cluster = RayCluster(Path(folder), cpus=said.cpus)
        os.environ |= {"RAY_ADDRESS": cluster.address, "RAY_USAGE_STATS_ENABLED": "0"}
        try:
            cluster.begin({f"n{number}": {"sm": "sm_90"} for number in range(said.nodes)}, slots=1)
            plan = Plan(f"{folder}/ran", said.recipes, said.seconds, "sm_90")
            url = f"file://{folder}/shared"
            build(Path(folder) / "first", url, Plan(f"{folder}/warm", said.nodes, 0.1, name="warm"), lambda _: None)
            before, began = os.getloadavg()[0], time.monotonic()
            build(Path(folder) / "driver", url, plan, lambda _: None)
            took, bound = time.monotonic() - began, 2 * said.recipes * said.seconds / said.nodes
            began = time.monotonic()
            build(Path(folder) / "again", url, plan, lambda _: None)
            print("| recipes | nodes | load | makespan, s | bound, s | over | all taken, s |\n|---|---|---|---|---|---|---|")
            again, load = time.monotonic() - began, f"{before:.0f} to {os.getloadavg()[0]:.0f}"
            print(f"| {said.recipes} | {said.nodes} | {load} | {took:.1f} | {bound:.0f} | {took / bound:.3f} | {again:.1f} |")
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
