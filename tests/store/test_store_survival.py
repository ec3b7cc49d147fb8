"""The store among other processes, killed processes, full disks and ordinary users."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from forge.errors import StoreError
from killing import at_every_instant
from store_makers import KEY, child, fill, key, provenance, store


def finish(process: subprocess.Popen[str]) -> str:
    """What a child printed; an AssertionError with its traceback if it failed."""
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out


MAKE = """
import sys, time
from pathlib import Path
from store_makers import KEY, fill, provenance, store

somebody = Path(sys.argv[3])

def slowly(out):
    fill(out)
    with open(sys.argv[2], "a") as log:
        log.write("filled\\n")
    while not somebody.exists():
        time.sleep(0.01)

def waiting(said):
    print("waits:", said)
    somebody.touch()

made, fresh = store(Path(sys.argv[1])).make(KEY, provenance(), slowly, waiting=waiting)
assert made.path.is_dir() and store(Path(sys.argv[1])).verify() == ()
print("made" if fresh else "held")
"""


@pytest.mark.slow
def test_of_eight_processes_wanting_one_key_one_makes_it(tmp_path: Path) -> None:
    """And seven wait."""
    log = tmp_path / "log"
    said = [finish(each) for each in [child(MAKE, tmp_path / "home", log, tmp_path / "somebody waits") for _ in range(8)]]
    assert log.read_text() == "filled\n"
    assert sorted(one.splitlines()[-1] for one in said) == ["held"] * 7 + ["made"]
    assert any("model: another process is making this; waiting for it" in one for one in said)
    assert list((tmp_path / "home" / "staging").iterdir()) == []


def survive_every_instant(root: Path) -> None:
    """Die at every instant of a make; the next make of another key finds nothing or a whole artifact, and cleans up."""

    def small(out: Path) -> None:
        (out / "1").mkdir()
        (out / "1" / "weights.bin").write_bytes(b"w" * 100)

    def look(instant: int) -> None:
        shelf = store(root)
        found = shelf.find(KEY)
        assert shelf.verify() == (), instant
        shelf.make(key(instant), provenance(), small)
        assert list((root / "staging").iterdir()) == [], instant
        assert (found is None) == (shelf.find(KEY) is None)
        shelf.collect()
        assert list(shelf.artifacts()) == []

    instants = at_every_instant(lambda: store(root).make(KEY, provenance(), small), look, stride=2)
    assert instants > 200


SURVIVE = """
import sys
from pathlib import Path
from store_makers import room
from test_store_survival import survive_every_instant
with room(Path(sys.argv[1])) as root:
    survive_every_instant(root)
"""


@pytest.mark.slow
def test_a_make_killed_anywhere_leaves_nothing_taken_for_whole(tmp_path: Path) -> None:
    finish(child(SURVIVE, tmp_path))


ENDLESS = """
import sys, itertools
from pathlib import Path
from store_makers import fill, key, provenance, store
for number in itertools.count():
    store(Path(sys.argv[1])).make(key(number), provenance(), fill)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_makers_killed_at_random_times_leave_only_whole_artifacts(tmp_path: Path) -> None:
    random = Random(7)
    for _ in range(6):
        with child(ENDLESS, tmp_path) as maker:
            assert maker.stdout is not None
            for _ in range(4):
                maker.stdout.readline()
            time.sleep(random.uniform(0, 0.05))
            maker.send_signal(signal.SIGKILL)
    shelf = store(tmp_path)
    assert shelf.verify() == ()
    assert len(list(shelf.artifacts())) >= 4
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a full disk needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_said_and_leaves_the_store_intact(small_disk: Path) -> None:
    shelf = store(small_disk / "home")
    shelf.make(key(1), provenance(), fill)
    with pytest.raises(StoreError) as caught:
        shelf.make(key(2), provenance(), lambda out: (out / "w").write_bytes(bytes(2 << 20)))
    assert "model could not be kept: the disk is full" in caught.value.what
    assert "MB free" in caught.value.what
    assert caught.value.where == str(small_disk / "home")
    assert "forge cache gc" in caught.value.hint
    assert list((small_disk / "home" / "staging").iterdir()) == []
    assert shelf.find(key(2)) is None
    assert shelf.verify() == ()
    shelf.make(key(3), provenance(), fill)


LIMITED = """
import resource, sys
from pathlib import Path
from forge.errors import StoreError
from store_makers import key, provenance, store
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
shelf = store(Path(sys.argv[1]))
try:
    shelf.make(key(1), provenance(), lambda out: (out / "w").write_bytes(bytes(200_000)))
except StoreError as error:
    print(error)
assert shelf.find(key(1)) is None and not list((Path(sys.argv[1]) / "staging").iterdir())
"""


def test_a_file_that_the_system_cuts_short_is_no_artifact(tmp_path: Path) -> None:
    assert "a file is larger than this system allows" in finish(child(LIMITED, tmp_path))


ORDINARY = """
import os, sys
from pathlib import Path
from blake3 import blake3
from forge.files import trees
from forge.errors import StoreError
from store_makers import KEY, fill, key, provenance, store
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
root = Path(sys.argv[1])
shelf = store(root / "home")
made, _ = shelf.make(KEY, provenance(), fill)
for path in (made.path / "new", made.path / "1" / "run"):
    try:
        path.write_text("no")
    except PermissionError:
        continue
    raise AssertionError(f"{path} could be written")
laid = root / "laid"
trees.lay(made.path, laid)
(laid / "fresh").write_text("laid folders are writable")
assert (laid / "weights.bin").stat().st_ino == (made.path / "weights.bin").stat().st_ino
try:
    shelf.make(key(1), provenance(), lambda out: fill(out) or out.chmod(0o555) or 1 / 0)
except ZeroDivisionError:
    pass
assert not list((root / "home" / "staging").iterdir())
(made.path / "weights.bin").chmod(0o600)
(made.path / "weights.bin").write_text("changed")
assert len(shelf.verify()) == 1 and not list((root / "home" / "staging").iterdir())
shelf.make(KEY, provenance(), fill)
assert len(shelf.collect().removed) == 1 and not list(shelf.artifacts())
(root / "sealed").mkdir(mode=0o555)
try:
    store(root / "sealed" / "home").make(KEY, provenance(), fill)
except StoreError as error:
    print(error)
"""


def test_an_ordinary_user_can_do_all_of_it() -> None:
    """And is told where permission lacks."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "of-nobody"
        root.mkdir()
        if os.getuid() == 0:
            Path(folder).chmod(0o755)
            os.chown(root, 65534, 65534)
        said = finish(child(ORDINARY, root))
        assert "model could not be kept: no permission for" in said
        assert "FORGE_HOME" in said


if sys.platform != "linux":
    pytest.skip("forge's store is tested on Linux", allow_module_level=True)
