"""A process that lives and does nothing: who stopped it, or in which fault it hangs."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge.machine import processes, stillness
from patience import soon
from stuck import in_fault


def test_the_handler_of_a_fault_is_seen_from_outside() -> None:
    with in_fault() as pid:
        assert soon(lambda: [*stillness.faults(pid).values()] == ["SIGABRT"])
        assert processes.started(pid)


def test_threads_that_want_no_signal_are_in_no_fault() -> None:
    with in_fault(hangs=False) as pid:
        assert stillness.faults(pid) == {}
    assert stillness.faults(os.getpid()) == {}


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(("sleep", "600")) as process:
        yield process.pid
        process.kill()


def test_a_stopped_process_stands(sleeper: int) -> None:
    assert not stillness.stands(sleeper)
    os.kill(sleeper, signal.SIGSTOP)
    assert soon(lambda: stillness.stands(sleeper))


def test_a_frozen_one_stands_too(sleeper: int) -> None:
    for place, state, frozen, thawed in (
        (Path("/sys/fs/cgroup/freezer"), "freezer.state", "FROZEN", "THAWED"),
        (Path("/sys/fs/cgroup"), "cgroup.freeze", "1", "0"),
    ):
        group = place / f"forge-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / "cgroup.procs").write_text(str(sleeper))
            (group / state).write_text(frozen)
        except OSError:
            continue
        assert soon(lambda: stillness.stands(sleeper))
        (group / state).write_text(thawed)
        assert soon(lambda: not stillness.stands(sleeper))
        (place / "cgroup.procs").write_text(str(sleeper))
        group.rmdir()
        return
    pytest.skip("freezing takes root and a cgroup that can be written")
