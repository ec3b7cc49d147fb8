"""What artifacts and repositories of very many files cost: from making and listing over scrubbing to removing and collecting.

python benchmarks/many_files.py [--folder DIR] [N ...]

One artifact of N files of four bytes, a thousand to a folder, and a repository that shows it; by default 1,000, 10,000 and
100,000. DIR, where they are made and removed, has to have an inode for each file. Told are microseconds of a processor for each
file, and by how many bytes for each a kind of work raised the most memory that its process, which is its own, has held; the
scrub's figure is all that it takes to read every file once. docs/benchmarks.md keeps what was measured.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kit"))

from forge.files import trees
from forge.repository import publish
from forge.schema.manifest import PublishedModel
from forge.schema.values import Names, RuntimeKind
from forge.serve import digests
from forge.serve.scrub import Scrub
from forge.store.store import Provenance, Store

COUNTS = (1_000, 10_000, 100_000)
FOLDER = 1000
ENTRY = "entry-of-many"
MODEL = PublishedModel(name="m", prefix="m", entry=ENTRY, runtime=RuntimeKind.TWIN, roles=Names("m").all())


def fill(out: Path, count: int) -> None:
    for folder in MODEL.roles.values():
        (out / folder).mkdir(parents=True)
        (out / folder / "config.pbtxt").write_text(f'name: "{folder}"\n')
    for first in range(0, count, FOLDER):
        place = out / MODEL.assets / f"{first:07}"
        place.mkdir(parents=True)
        for number in range(first, min(first + FOLDER, count)):
            (place / f"{number:07}").write_bytes(number.to_bytes(4, "little"))


def store(root: Path) -> Store:
    return Store(root / "store", clock=time.time)


def published(root: Path) -> None:
    held = store(root).find(ENTRY)
    assert held
    with store(root).publishing(root / "models", (ENTRY,)):
        publish.publish(held.path, root / "models", MODEL, lambda text: text)


def checked(root: Path) -> None:
    models = root / "models"
    assert not digests.check(models, publish.inventory(models), store(root), "always", time.time()).rotten


def scrubbed(root: Path) -> None:
    began = time.time() + 1.0
    scrub = Scrub(store(root), time.process_time, lambda _: False, lambda: began, print)
    while not scrub.look([root / "models"], 1.0):
        pass


def listed(root: Path) -> None:
    assert [held.key for held in store(root).artifacts()] == [ENTRY]


def collected(root: Path) -> None:
    assert not store(root).collect(dry_run=True).removed


def removed(root: Path) -> None:
    publish.withdraw(root / "models", MODEL.name)


def given_up(root: Path) -> None:
    with store(root).publishing(root / "models"):
        pass  # nothing there names it any more
    assert store(root).collect().removed


def verified(root: Path) -> None:
    assert not store(root).verify()


def work(count: int) -> dict[str, Callable[[Path], object]]:
    kept = Provenance("entry", "Entry", {}, {})
    return {
        "make": lambda root: store(root).make(ENTRY, kept, lambda out: fill(out, count)),
        "ls": listed,
        "publish": published,
        "publish again": published,
        "check": checked,
        "scrub": scrubbed,
        "gc": collected,
        "verify": verified,
        "remove": removed,
        "gc of all": given_up,
    }


def _measure(kind: str, count: int, root: Path, told: "SimpleQueue[tuple[float, int]]") -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    work(count)[kind](root)
    told.put((time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10))


def measured(kind: str, count: int, root: Path) -> tuple[float, int]:
    """Seconds of a processor, and bytes, in a process of its own."""
    spawned = multiprocessing.get_context("spawn")
    told: SimpleQueue[tuple[float, int]] = spawned.SimpleQueue()
    process = spawned.Process(target=_measure, args=(kind, count, root, told))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{kind} of {count} files: exit status {process.exitcode}")
    return told.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", nargs="*", type=int, metavar="N")
    parser.add_argument("--folder", type=Path, help="where the store and the repository are made, and removed")
    given = parser.parse_args()
    print(
        f"{'files':>9}  " + "".join(f"{kind:>22}" for kind in work(0)) + "   us and bytes of memory for each file", flush=True
    )
    for count in given.counts or COUNTS:
        with TemporaryDirectory(dir=given.folder) as folder:
            print(f"{count:9,}  ", end="", flush=True)
            for kind in work(count):
                seconds, size = measured(kind, count, Path(folder))
                print(f"{f'{1e6 * seconds / count:,.0f} us {size / count:,.0f} B':>22}", end="", flush=True)
            print(flush=True)
            for place in Path(folder).iterdir():  # what a store keeps cannot be written
                trees.remove(place)


if __name__ == "__main__":
    main()
