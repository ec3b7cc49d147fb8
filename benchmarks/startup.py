"""What `forge --help` and a null build cost, beside the imports they cannot do without. Medians of several, in one run.

python benchmarks/startup.py [RECIPE]     RECIPE: built before into a scratch repository; its null build is measured too
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 15
CLICK = [sys.executable, "-c", "import click"]
API = [sys.executable, "-c", "import click, msgspec, tomli, pluggy; import forge.api.forge"]
FOUR = [sys.executable, "-c", "import click, msgspec, tomli, pluggy"]
KEPT = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
"""Byte code is kept, as where forge is installed: without it each start compiles forge anew."""
FORGE = str(Path(sys.executable).with_name("forge"))


def medians(commands: dict[str, list[str]]) -> dict[str, float]:
    """Milliseconds of each command; the rounds go over all of them in turn, so that a slow minute is everybody's."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=KEPT)
            taken[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(times) for name, times in taken.items()}


def main(recipes: list[str]) -> None:
    commands = {"import click": CLICK, "forge --help": [FORGE, "--help"], "import click, msgspec, tomli, pluggy": FOUR}
    commands["and forge.api.forge"] = API
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in recipes:
            build = [FORGE, "build", "--quiet", recipe, "--repository", f"{scratch}/models"]
            subprocess.run(build, check=True, capture_output=True, env=KEPT)
            commands["null build"] = build
        found = medians(commands)
    for name, milliseconds in found.items():
        print(f"{name:40} {milliseconds:7.1f} ms")
    print(f"\nforge --help / import click: {found['forge --help'] / found['import click']:.2f}  (target: at most 1.5)")
    if "null build" in found:
        base = found["import click, msgspec, tomli, pluggy"]
        print(f"null build / imports of the four: {found['null build'] / base:.2f}  (target: at most 3)")


if __name__ == "__main__":
    main(sys.argv[1:])
