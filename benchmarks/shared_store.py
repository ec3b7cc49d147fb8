"""What forge's transfer to and from a shared store costs, beside the same client moving the same bytes raw, by turns.

python benchmarks/shared_store.py [MEGABYTES] [URL]     without URL: SeaweedFS on the loopback, and a folder

Raw is obstore's own `put` of the file (multipart, twelve parts at a time) and its `get` streamed into one. forge's has hashing,
verifying, flushing to disk and the record on top. Medians of ROUNDS; a server on this machine takes its part of the processors.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import obstore

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kit"))

from forge.remote.open import place
from forge.remote.shared import Shared
from forge.store.store import Provenance, Store
from s3_server import BUCKET, S3, opened

ROUNDS = 5
ENGINE = Provenance("engine", "Run", {"gpu": "sm_89"}, {})


def measured(scratch: Path, url: str, megabytes: int) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    found: dict[str, list[float]] = {"raw put": [], "forge push": [], "raw get": [], "forge pull": []}
    raw = opened(url)
    for number in range(ROUNDS):
        here, there = (Store(scratch / f"{name}{number}", clock=time.time) for name in ("here", "there"))
        key = f"{number:064x}"
        held, _ = here.make(key, ENGINE, lambda out: (out / "rank0.engine").write_bytes(os.urandom(megabytes * 1_000_000)))
        shared = Shared(lambda: place(url, 60.0), url, lambda _: None, time.time)
        file, copy = held.path / "rank0.engine", scratch / "copy"

        def put(file: Path = file, number: int = number) -> None:
            obstore.put(raw, f"raw{number}", file)

        def get(copy: Path = copy, number: int = number) -> None:
            with copy.open("wb") as stream:
                for chunk in obstore.get(raw, f"raw{number}").stream(min_chunk_size=16 * 1024 * 1024):
                    stream.write(chunk)
                os.fsync(stream.fileno())

        ways: list[tuple[str, Callable[[], object]]] = [
            ("raw put", put),
            ("forge push", partial(shared.push, held)),
            ("raw get", get),
            ("forge pull", partial(shared.pull, key, there)),
        ]
        for name, way in ways:
            began = time.perf_counter()
            way()
            found[name].append(time.perf_counter() - began)
        for store in (here, there):
            for folder in store.root.rglob("*"):
                if folder.is_dir():
                    folder.chmod(0o755)
            shutil.rmtree(store.root)
        obstore.delete(raw, f"raw{number}")
    return found


def report(name: str, found: dict[str, list[float]], megabytes: int) -> None:
    rates = {way: megabytes / statistics.median(seconds) for way, seconds in found.items()}
    print(f"{name}: {megabytes} MB, MB/s: " + ", ".join(f"{way} {rate:.0f}" for way, rate in rates.items()))
    print(
        f"  forge / raw: push {rates['forge push'] / rates['raw put']:.2f}, pull {rates['forge pull'] / rates['raw get']:.2f}"
    )


def main(megabytes: int, url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if url:
            report(url.partition(":")[0], measured(scratch, url, megabytes), megabytes)
            return
        (scratch / "shared").mkdir()
        report("folder", measured(scratch, f"file://{scratch / 'shared'}", megabytes), megabytes)
        server = S3(scratch / "s3")
        os.environ.update(server.environment())
        server.start()
        try:
            report("S3", measured(scratch, f"s3://{BUCKET}/bench", megabytes), megabytes)
        finally:
            server.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 128, sys.argv[2] if len(sys.argv) > 2 else "")
