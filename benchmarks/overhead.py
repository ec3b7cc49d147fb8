"""What forge adds to the commands that it runs: one model converted and built by forge, and by a plain shell script.

    python benchmarks/overhead.py [--rounds 5] [--width 1536]

Both hold the image, put the family's requirements on top, convert and build, in containers of the tests' stand-in for NVIDIA's
image, with the very command lines of forge's plan. forge does so twice: in a home where another model was built before, which
is the promise, and in an empty one, where it reads the image's skeletons, scripts and help texts first (once for an image and
a family). Rounds are interleaved, and medians compared. Needs a Docker engine and the ``docker`` command.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests" / "kit"
FORGE = Path(sys.executable).with_name("forge")
RATIO, GRACE = 1.03, 0.5  # seconds
RECIPE = """
name = "{name}"
[source]
path = "{name}"
[runtime]
image = "{image}"
gpus = "none"
[convert]
dtype = "bfloat16"
[build]
max_batch_size = 4
max_input_len = 200
max_seq_len = 400
"""
RUN = (
    "docker run --rm --init --network none --shm-size 2g --ulimit stack=67108864 --security-opt no-new-privileges"
    " --env PYTHONUNBUFFERED=1 --env PYTHONDONTWRITEBYTECODE=1"
)
NAMES = {"image": "image", "convert": "random: checkpoint", "build": "random: engine"}
"""The script's steps -> forge's."""


@dataclass(frozen=True, slots=True)
class Round:
    """One build: seconds in all and of each step."""

    whole: float
    steps: dict[str, float]


def prepare(folder: Path, width: int) -> str:
    """Two random Llamas and their recipes in ``folder``, and the stand-in in the Docker engine: its reference."""
    sys.path.insert(0, str(TESTS))
    from docker_fixture import load
    from standin import checkpoints, image
    from triton_fixture import made

    kept = Path(os.environ.get("FORGE_TEST_HOME") or Path(tempfile.gettempdir()) / "forge-overhead").absolute()
    archive = image.archive(made(kept), kept=kept)
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    held = subprocess.run(["docker", "image", "inspect", archive.id], capture_output=True, check=False)
    if held.returncode:
        load(address, archive.archive)
    shape = checkpoints.Shape(width, 8, width // 64, width // 64, 64, width * 3)
    checkpoints.llama(folder / "random", shape)
    checkpoints.llama(folder / "other")
    for name in ("random", "other"):
        (folder / f"{name}.toml").write_text(RECIPE.format(name=name, image=archive.reference))
    return archive.reference


def script(folder: Path, image: str) -> str:
    """The same by hand: a shell script of docker commands, that says when each step is over."""
    from forge.api.forge import Forge
    from forge.plan.steps import Run, Stage

    shop = Forge(folder / "used", dict(os.environ))
    shop.make([folder / "other.toml"], Stage.BUILD)
    steps = {step.name: step for step in shop.plan([folder / "random.toml"]).steps}
    (folder / "Dockerfile").write_text(shop.dockerfile(folder / "random.toml"))
    lines = ["set -eu", 'said() { echo "$1 $(date +%s.%N)"; }', "said begin", f"docker image inspect {image} >/dev/null"]
    lines += ["docker build --quiet --network host --tag forge-overhead/shell - < Dockerfile >/dev/null", "said image"]
    lines.append("mkdir checkpoint out")
    for word, source, at, out in (
        ("convert", "../random", "model", "checkpoint"),
        ("build", "checkpoint", "checkpoint", "out"),
    ):
        action = steps[NAMES[word]].action
        assert isinstance(action, Run)
        mounts = f'--volume "$PWD/{source}:/forge/{at}:ro" --volume "$PWD/{out}:/forge/out"'
        for command in action.commands:
            lines.append(f"{RUN} {mounts} forge-overhead/shell {shlex.join(command.argv)} > {word}.log 2>&1")
        lines.append(f"said {word}")
    return "\n".join(lines) + "\n"


def by_hand(folder: Path, text: str) -> Round:
    place = folder / "by-hand"
    place.mkdir()
    shutil.copy(folder / "Dockerfile", place)
    began = time.perf_counter()
    done = subprocess.run(["sh", "-c", text], cwd=place, capture_output=True, text=True, check=True)
    whole = time.perf_counter() - began
    shutil.rmtree(place)
    stamps = [(word, float(stamp)) for word, stamp in (line.split() for line in done.stdout.splitlines())]
    return Round(whole, {word: stamp - before for (_, before), (word, stamp) in pairwise(stamps)})


def by_forge(folder: Path, *, used: bool) -> Round:
    """In a home where another model was built, or in an empty one."""
    home = folder / "home"
    if used:
        shutil.copytree(folder / "used", home, symlinks=True)
    words = [str(FORGE), "build", "-v", str(folder / "random.toml"), "--until", "build"]
    began = time.perf_counter()
    env = {**os.environ, "FORGE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": ""}  # byte code is kept, as anywhere else
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    whole = time.perf_counter() - began
    shutil.rmtree(home)
    return Round(whole, dict(made(done.stderr)))


def made(log: str) -> Iterator[tuple[str, float]]:
    """(step, seconds) of each that was made, out of forge's structured log."""
    for line in log.splitlines():
        event = json.loads(line)
        if event["event"] == "made":
            yield event["step"], event["seconds"]


def show(hand: list[Round], forge: list[Round], fresh: list[Round]) -> bool:
    """Print medians; whether forge keeps to what it promises."""
    print(f"{'step':14} {'shell':>8} {'forge':>8} {'more':>8}  (s, medians of {len(hand)})")
    for word, name in NAMES.items():
        theirs, ours = (
            statistics.median(each.steps.get(key, 0.0) for each in some) for key, some in ((word, hand), (name, forge))
        )
        print(f"{word:14} {theirs:8.2f} {ours:8.2f} {ours - theirs:+8.2f}")
    fetch = statistics.median(each.steps["random: model"] for each in forge)
    rest = statistics.median(each.whole - sum(each.steps.values()) for each in forge)
    print(
        f"{'fetch':14} {'':8} {fetch:8.2f} {fetch:+8.2f}\n{'the rest':14} {'':8} {rest:8.2f} {rest:+8.2f}  start, plan, checks"
    )
    theirs, ours, first = (statistics.median(each.whole for each in some) for some in (hand, forge, fresh))
    most = RATIO * theirs + GRACE
    print(f"{'in all':14} {theirs:8.2f} {ours:8.2f} {ours - theirs:+8.2f}  ratio {ours / theirs:.3f}")
    print(f"{'an empty home':14} {theirs:8.2f} {first:8.2f} {first - theirs:+8.2f}  ratio {first / theirs:.3f}")
    print(f"target: at most {RATIO} times the shell's, plus {GRACE} s: {most:.2f} s: {'kept' if ours <= most else 'MISSED'}")
    return ours <= most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=1536, help="of the random model; 1536 is 1 GB of weights")
    options = parser.parse_args()
    if shutil.which("docker") is None:
        print("there is no docker command here", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="forge-overhead-") as name:
        folder = Path(name)
        text = script(folder, prepare(folder, options.width))
        by_hand(folder, text), by_forge(folder, used=True)  # what is cached is cached for all
        hand: list[Round] = []
        forge: list[Round] = []
        fresh: list[Round] = []
        for _ in range(options.rounds):
            hand.append(by_hand(folder, text))
            forge.append(by_forge(folder, used=True))
            fresh.append(by_forge(folder, used=False))
    return 0 if show(hand, forge, fresh) else 1


if __name__ == "__main__":
    sys.exit(main())
