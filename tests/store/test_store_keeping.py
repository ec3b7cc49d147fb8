"""What the store gives up, and what it never does: whatever a repository, a build or a server uses."""

import os
import signal
import sys
from pathlib import Path

import pytest

from forge.store.claims import began
from forge.store.store import Store
from store_makers import Clock, child, fill, key, provenance, store


def shelf(root: Path, clock: Clock, count: int = 3, size: int = 1000) -> Store:
    """A store of ``count`` artifacts of ``size`` bytes, each last used a minute after the one before."""
    made = store(root, clock)
    for number in range(count):
        made.make(key(number), provenance(f"step {number}"), lambda out: (out / "f").write_bytes(os.urandom(size)))
        clock.now += 60
    return made


def held(of: Store) -> list[int]:
    return [int(artifact.key, 16) for artifact in of.artifacts()]


def test_without_limits_everything_unused_goes(tmp_path: Path) -> None:
    made = shelf(tmp_path, Clock())
    assert [one.step for one in made.collect().removed] == ["step 0", "step 1", "step 2"]
    assert held(made) == []
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.parametrize("name", [".DS_Store", ".nfs0000000000a1", "a b", "x" * 200, "lost+found"])
def test_a_strangers_file_in_the_store_is_in_nobodys_way(tmp_path: Path, name: str) -> None:
    """A file manager's, NFS's: in each folder that there is, and a folder of that name too."""
    made = shelf(tmp_path, Clock())
    for number, folder in enumerate([each for each in tmp_path.rglob("*") if each.is_dir() and "tree" not in each.parts]):
        (folder / name).mkdir() if number % 2 else (folder / name).touch()
    (tmp_path / name).touch()
    assert held(made) == [0, 1, 2]
    assert made.verify() == ()
    assert made.nearest(provenance("step 1", more="x"))
    assert len(made.collect().removed) == 3
    shelf(tmp_path, Clock())
    assert held(made) == [0, 1, 2]


def test_a_dry_run_says_what_would_go_and_removes_nothing(tmp_path: Path) -> None:
    made = shelf(tmp_path, Clock())
    assert [one.size for one in made.collect(dry_run=True).removed] == [1000] * 3
    assert held(made) == [0, 1, 2]


def test_what_was_used_lately_stays(tmp_path: Path) -> None:
    clock = Clock()
    made = shelf(tmp_path, clock)
    made.find(key(0))
    made.collect(older_than=70)
    assert held(made) == [0, 2]


def test_the_least_recently_used_go_until_the_rest_fits(tmp_path: Path) -> None:
    made = shelf(tmp_path, Clock())
    made.find(key(0))
    assert [one.key for one in made.collect(max_size=1500).removed] == [key(1), key(2)]
    assert made.collect(max_size=1500).removed == ()


def test_a_hard_link_between_artifacts_counts_once(tmp_path: Path) -> None:
    made = shelf(tmp_path, Clock(), count=1)
    model = made.find(key(0))
    assert model is not None
    made.make(key(1), provenance("entry"), lambda out: os.link(model.path / "f", out / "f"))
    assert made.collect(max_size=1000).removed == ()
    assert sum(one.size for one in made.collect(dry_run=True).removed) == 1000


def test_what_a_build_uses_stays_until_it_ends(tmp_path: Path) -> None:
    made = shelf(tmp_path, Clock())
    with made.using([key(0)]), made.using([key(2)]):
        store(tmp_path, Clock()).collect()
        assert held(made) == [0, 2]
    made.collect()
    assert held(made) == []
    assert list((tmp_path / "claims").iterdir()) == []


USING = """
import sys, time
from pathlib import Path
from forge.store.store import Store
with Store(Path(sys.argv[1]), clock=time.time).using([sys.argv[2]]):
    print("using", flush=True)
    time.sleep(3600)
"""


def test_the_claim_of_a_killed_build_ends_with_it(tmp_path: Path) -> None:
    made = shelf(tmp_path, Clock())
    with child(USING, tmp_path, key(1)) as builder:
        assert builder.stdout is not None
        builder.stdout.readline()
        made.collect()
        assert held(made) == [1]
        builder.send_signal(signal.SIGKILL)
    made.collect()
    assert held(made) == []
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_detached_servers_files_stay_while_that_process_lives(tmp_path: Path) -> None:
    made = shelf(tmp_path, Clock())
    with child("import time; time.sleep(3600)") as server:
        started = began(server.pid)
        assert started is not None
        made.lend([key(0)], server.pid, started)
        made.lend([key(1)], server.pid, started - 1)  # a process of that number that is no more
        made.collect()
        assert held(made) == [0]
        server.kill()
    assert began(server.pid) is None
    made.collect()
    assert held(made) == []


def test_what_a_dead_maker_left_is_collected(tmp_path: Path) -> None:
    made = shelf(tmp_path, Clock(), count=1)
    left = tmp_path / "staging" / f"{key(7)}.dead" / "tree"
    left.mkdir(parents=True)
    fill(left)
    left.chmod(0o555)
    made.collect(older_than=10**9)
    assert list((tmp_path / "staging").iterdir()) == []
    assert held(made) == [0]


if sys.platform != "linux":
    pytest.skip("claims of detached servers read /proc", allow_module_level=True)
