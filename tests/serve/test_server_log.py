"""What is read out of Triton's log; the texts are Triton 2.51's own."""

import os
import sys
from pathlib import Path

import pytest

from forge.machine import processes
from forge.schema.values import Ports
from forge.serve.log import cause, failures, lines, part, written
from forge.serve.server_types import Running
from patience import soon

LOG = """\
I1123 09:04:57.912229 13122 model_lifecycle.cc:472] "loading: broken:1"
E1123 09:04:58.183224 13122 model_lifecycle.cc:642] "failed to load 'broken' version 1: Internal: \
ValueError: empty folder\\n\\nAt:\\n  /repository/broken/1/model.py(4): initialize\\n"
I1123 09:04:58.183224 13122 model_lifecycle.cc:777] "failed to load 'broken'"
E1123 09:04:58.183300 13122 model_repository_manager.cc:703] "Invalid argument: ensemble 'chain' depends on 'broken' which \
has no loaded version. Model 'broken' loading failed with error: version 1 is at UNAVAILABLE state: Internal: ValueError"
I1123 09:04:58.183383 13122 server.cc:674]
+----------+---------+--------------------------------------------------------+
| Model    | Version | Status                                                 |
+----------+---------+--------------------------------------------------------+
| broken   | 1       | UNAVAILABLE: Internal: ValueError: empty folder        |
|          |         |                                                        |
|          |         | At:                                                    |
|          |         |   /repository/broken/1/model.py(4): initialize         |
| identity | 1       | READY                                                  |
| other    | 1       | UNAVAILABLE: Not found: it needs what is not there     |
+----------+---------+--------------------------------------------------------+

error: creating server: Internal - failed to load all models
"""


def test_models_that_did_not_load_have_their_whole_reason() -> None:
    found = failures(LOG)
    assert list(found) == ["broken", "other", "chain"]
    reason = "Internal: ValueError: empty folder\n\nAt:\n  /repository/broken/1/model.py(4): initialize"
    assert found["broken"] == reason
    assert found["chain"] == "it needs 'broken'"
    assert found["other"] == "Not found: it needs what is not there"


def test_a_log_without_failures_has_none() -> None:
    assert failures('I1123 09:04:57.9 1 model_lifecycle.cc:472] "loading: identity:1"\n') == {}


def test_the_part_of_a_model_holds_what_continues_its_entries() -> None:
    assert "initialize" in part(LOG, "broken")
    assert "| broken" not in part(LOG, "broken")
    assert "loading: broken" not in part(LOG)
    assert part("nothing known", "broken") == "nothing known"


def test_who_follows_a_log_sees_that_of_the_next_start(tmp_path: Path) -> None:
    log, looks = tmp_path / "log", iter((True, False))
    log.write_text("first\n")

    def now() -> Path | None:
        if not next(looks):
            return None
        log.replace(tmp_path / "died.log")
        log.write_text("second\n")
        return log

    assert list(lines(log, now)) == ["first", "second"]


def test_who_follows_the_end_of_a_log_misses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    looks = iter((log, log, None))
    log.write_text("first\nsecond\nthird\n")

    def now() -> Path | None:
        with log.open("a") as text:
            text.write("later\n")
        return next(looks)

    assert list(lines(log, now, 2)) == ["second", "third", "later", "later", "later"]


def test_more_lines_than_any_log_has_are_all_of_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\nsecond\n")
    assert list(lines(log, tail=10**30)) == ["first", "second"]
    assert list(lines(log, tail=0)) == []


@pytest.mark.parametrize("name", ["x.log.1", "x-20261128.log", "other/x.log"])
def test_a_renamed_log_is_read_on_and_tells_the_cause(tmp_path: Path, name: str) -> None:
    """As logrotate moves it, without copytruncate and with its ``create``."""
    log, moved, go = tmp_path / "x.log", tmp_path / name, tmp_path / "go"
    moved.parent.mkdir(exist_ok=True)
    wait = "while not os.path.exists(sys.argv[1]): time.sleep(0.01)"
    code = f"import os, sys, time\nprint('first', flush=True)\n{wait}\nprint('Signal (11) received.', flush=True)\ninput()"
    reading, writing = os.pipe()
    pid = processes.detached((sys.executable, "-c", code, str(go)), {}, log, hears=reading)
    running = Running("r", pid, processes.started(pid) or 0.0, Ports(), (), str(log), "m", inode=log.stat().st_ino)
    try:
        assert soon(lambda: log.read_text() == "first\n")
        log.rename(moved)
        log.touch()
        go.touch()
        assert soon(lambda: list(lines(written(running))) == ["first", "Signal (11) received."])
    finally:
        os.close(writing)
        os.waitpid(pid, 0)
    gone = "nobody has seen how, and its log, which may say it, is not where it was"
    assert cause(None, written(running)) == ("signal 11, SIGSEGV" if moved.parent == tmp_path else gone)
