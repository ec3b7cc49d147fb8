"""What a model costs when there are many: plan, build and publish, check, and a null build of 1, 10, 100 and 1,000 recipes.

python benchmarks/many_models.py [N ...]

Fetching is faked (a checkpoint of a few hundred bytes); plans, keys, store, publishing and checking are real, on real files.
Milliseconds per model, the median of several rounds for small numbers; then bytes on disk per byte of artifact after one recipe
with a real weight was published into three repositories (blocks of distinct inodes, store and repositories together).
docs/benchmarks.md keeps what was measured.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kit"))

from fake_wiring import FakeWiring, World
from forge.api.forge import Forge
from forge.check.check import Checker
from forge.schema.values import BuildOptions

RECIPE = 'name = "model-{number:04}"\nfamily = "llama"\n[source]\nhub = "acme/model-{number:04}"\n[runtime]\nkind = "twin"\n'
MODELS = (1, 10, 100, 1000)
ROUNDS = {1: 9, 10: 5, 100: 3}
"""One, where nothing is said."""
WEIGHT = 256 * 1024 * 1024
BLOCK = 512  # bytes, what st_blocks counts in


def recipes(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    files = [folder / f"model-{number:04}.toml" for number in range(count)]
    for number, file in enumerate(files):
        file.write_text(RECIPE.format(number=number))
    return files


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measured(folder: Path, count: int) -> dict[str, float]:
    """Milliseconds per model of each kind of work, on a fresh home."""
    files, place = recipes(folder / "recipes", count), folder / "models"
    world = World()
    shop: Forge = world.shop(folder / "home")
    checker = Checker(shop.store, FakeWiring(folder / "home", world).machine)
    taken = {
        "plan": seconds(lambda: shop.plan(files, options=BuildOptions(prefixed=True))),
        "build and publish": seconds(lambda: shop.build(files, repository=place, options=BuildOptions(prefixed=True))),
        "check": seconds(lambda: checker.check(place)),
        "null build": seconds(lambda: shop.build(files, repository=place, options=BuildOptions(prefixed=True))),
    }
    return {name: 1000 * whole / count for name, whole in taken.items()}


def table(counts: list[int]) -> Iterator[str]:
    yield f"{'models':>8} {'plan':>10} {'build and publish':>20} {'check':>10} {'null build':>12}   ms per model"
    for count in counts:
        rounds: list[dict[str, float]] = []
        for _ in range(ROUNDS.get(count, 1)):
            with TemporaryDirectory() as folder:
                rounds.append(measured(Path(folder), count))
        one = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        yield f"{count:8} {one['plan']:10.2f} {one['build and publish']:20.2f} {one['check']:10.2f} {one['null build']:12.2f}"


def ratio() -> float:
    """Bytes on disk per byte of artifact, after three repositories."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        world = World()
        world.origin.files["model.safetensors"] += bytes(range(256)) * (WEIGHT // 256)
        shop = world.shop(folder / "home")
        (file,) = recipes(folder / "recipes", 1)
        for place in ("a", "b", "c"):
            shop.build([file], repository=folder / place)
        inodes = {(s.st_dev, s.st_ino): s for each in folder.rglob("*") if each.is_file() for s in (each.lstat(),)}
        once: dict[str, int] = {}  # an entry's weight is its model's: by digest
        for artifact in shop.store.artifacts():
            once |= {entry.blake3: entry.size for entry in artifact.files() if entry.blake3}
        return sum(status.st_blocks * BLOCK for status in inodes.values()) / sum(once.values())


def main(counts: list[int]) -> None:
    for line in table(counts):
        print(line, flush=True)
    print(f"\nbytes on disk per byte of artifact, three repositories: {ratio():.3f}  (target: 1.00)")


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or list(MODELS))
