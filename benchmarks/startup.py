"""What `forge --help` and a null build cost, beside the imports they cannot do without: milliseconds of a processor, medians of
several by turns. A null build is measured with the note of the former one, and as if there were none.

python benchmarks/startup.py [RECIPE]     RECIPE: built before into a scratch repository; its null build is measured too
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 9
UNNOTED = "null build without its note"
CLICK = [sys.executable, "-c", "import click"]
API = [sys.executable, "-c", "import click, msgspec, tomli, pluggy; import forge.api.forge"]
FOUR = [sys.executable, "-c", "import click, msgspec, tomli, pluggy"]
KEPT = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
"""Byte code is kept, as where forge is installed: without it each start compiles forge anew."""
FORGE = str(Path(sys.executable).with_name("forge"))


def spent() -> float:
    """Milliseconds of a processor that all children so far have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1000


def medians(commands: dict[str, list[str]]) -> dict[str, float]:
    """Of each command; the rounds go over all of them in turn, so that a slow minute is everybody's."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(ROUNDS):
        for name, command in commands.items():
            # Notes are kept by Python's path, among others: with another one there is none.
            env = {**KEPT, "PYTHONPATH": f"/no/such/{os.getpid()}/{number}"} if name == UNNOTED else KEPT
            began = spent()
            subprocess.run(command, check=True, capture_output=True, env=env)
            taken[name].append(spent() - began)
    return {name: statistics.median(times) for name, times in taken.items()}


def main(recipes: list[str]) -> None:
    commands = {"import click": CLICK, "forge --help": [FORGE, "--help"], "import click, msgspec, tomli, pluggy": FOUR}
    commands["and forge.api.forge"] = API
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in recipes:
            for name in (
                "null build",
                UNNOTED,
            ):  # a build that plans anew writes its manifest: each has a repository of its own
                commands[name] = [FORGE, "build", "--quiet", recipe, "--repository", f"{scratch}/{name}"]
                subprocess.run(commands[name], check=True, capture_output=True, env=KEPT)
        found = medians(commands)
    for name, milliseconds in found.items():
        print(f"{name:40} {milliseconds:7.1f} ms")
    print(f"\nforge --help / import click: {found['forge --help'] / found['import click']:.2f}  (target: at most 1.5)")
    if "null build" in found:
        base = found["import click, msgspec, tomli, pluggy"]
        print(f"null build / imports of the four: {found['null build'] / base:.2f}  (target: at most 3)")


if __name__ == "__main__":
    main(sys.argv[1:])
