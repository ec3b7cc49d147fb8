"""The process that ends what a forge has started when that forge is gone: whom it ends, whom it spares, and when it stops."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from forge.machine import reaper
from patience import PATIENCE, soon

MARK = "FORGE_TEST_REAPED=this-one"
SLEEP = "import time; time.sleep(3600)"
Begin = Callable[..., "subprocess.Popen[bytes]"]


@contextmanager
def standard_input() -> Generator[int]:
    """Standard input as a pipe; what is given is its other end, to be written to or closed."""
    kept = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    try:
        yield writing
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@pytest.fixture
def begin() -> Generator[Begin]:
    """Starts a Python that carries marks in its environment; none of them outlives the test."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(*marks: str, code: str = SLEEP, alone: bool = False) -> "subprocess.Popen[bytes]":
        environ = {**os.environ, **dict(mark.split("=", 1) for mark in marks)}
        begun.append(subprocess.Popen((sys.executable, "-c", code), env=environ, start_new_session=alone))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait(PATIENCE)


def carrying() -> list[int]:
    """All that carry the mark and have not ended."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if MARK.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def is_carrier(process: "subprocess.Popen[bytes]") -> bool:
    return process.pid in carrying()


def test_whoever_carries_the_mark_ends_and_nobody_else(begin: Begin, tmp_path: Path) -> None:
    nested = f"import subprocess, sys; subprocess.Popen((sys.executable, '-c', {SLEEP!r}), start_new_session=True)\n{SLEEP}"
    mine = [begin(MARK), begin(MARK, "OTHER=1", alone=True), begin(MARK, code=nested)]
    theirs = [begin(), begin(f"{MARK}-not"), begin("OTHER=1", f"FORGE_TEST_ELSE={MARK}")]
    assert soon(lambda: all(map(is_carrier, mine)))
    assert soon(lambda: len(carrying()) == len(mine) + 1), "one has a child of its own"
    (tmp_path / "unpacked").mkdir()
    with standard_input() as end:
        os.close(end)
        reaper.main(MARK, str(tmp_path))
    assert not tmp_path.exists()
    assert [process.wait(PATIENCE) for process in mine] == [-9, -9, -9]
    assert [process.poll() for process in theirs] == [None, None, None]
    assert carrying() == []


def test_a_forge_that_ended_well_leaves_what_it_has_started(begin: Begin, tmp_path: Path) -> None:
    one = begin(MARK)
    assert soon(lambda: is_carrier(one))
    with standard_input() as end:
        os.write(end, b".")
        reaper.main(MARK, str(tmp_path))
        os.close(end)
    assert tmp_path.exists()
    assert one.poll() is None


def test_it_waits_as_long_as_its_forge_lives(begin: Begin) -> None:
    one = begin(MARK)
    assert soon(lambda: is_carrier(one))
    with standard_input() as end:
        waiting = threading.Thread(target=reaper.main, args=(MARK, ""), daemon=True)
        waiting.start()
        waiting.join(2 * reaper.PAUSE)
        assert waiting.is_alive()
        assert one.poll() is None
        os.close(end)
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
    assert one.wait(PATIENCE) == -9


def test_one_that_shows_its_mark_between_two_looks_ends_too(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a program does that was between fork and exec at the first look."""
    late: list[subprocess.Popen[bytes]] = []

    def pause(_: float) -> None:
        if not late:
            late.append(begin(MARK))
            assert soon(lambda: is_carrier(late[0]))

    monkeypatch.setattr(time, "sleep", pause)
    with standard_input() as end:
        os.close(end)
        reaper.main(MARK, "")
    assert late[0].wait(PATIENCE) == -9


def test_what_cannot_be_ended_or_is_gone_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals, told = [ProcessLookupError(), PermissionError()], list[int]()
    looks = iter([(1, 2), (), tuple[int, ...]()])

    def refuse(pid: int, _: int) -> None:
        told.append(pid)
        raise refusals[len(told) - 1]

    monkeypatch.setattr(os, "kill", refuse)

    def pause(_: float) -> None:
        """No time goes by."""

    def carriers(_: bytes) -> tuple[int, ...]:
        return next(looks)

    monkeypatch.setattr(time, "sleep", pause)
    monkeypatch.setattr(reaper, "_carriers", carriers)
    with standard_input() as end:
        os.close(end)
        reaper.main(MARK, "")
    assert told == [1, 2]
    assert next(looks, None) is None, "it looks until nobody was there twice"
