"""What a person at a terminal sees of a build as it goes on."""

import io
import re
import sys

import pytest

from forge.cli.bars import Bars
from forge.events import Event

SHOWN, HIDDEN = "\x1b[?25h", "\x1b[?25l"
"""The cursor, as terminals are told of it."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error from now on: a terminal that is wide enough."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return found


def seen(screen: Terminal) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_the_running_step_has_a_line_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, bars = terminal(monkeypatch), Bars()
    bars(Event("start", "engine"))
    bars(Event("log", "engine", text='I1126 05:25:56.123456 12 server.cc:674] "[red] layer 3 of 22'))
    bars.close()
    assert "engine" in seen(screen)
    assert "[red] layer 3 of 22" in seen(screen), "what a step logs is no markup"
    assert "server.cc" not in seen(screen), "what Triton puts before each line says nothing to a person"


def test_words_of_strangers_do_nothing_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, bars = terminal(monkeypatch), Bars()
    evil = "\x1b]52;c;cm0=\x07"
    bars(Event("start", f"engine {evil}"))
    bars(Event("log", f"engine {evil}", text=f"layer {evil}"))
    bars(Event("note", "engine", text=f"note {evil}"))
    bars(Event("made", f"engine {evil}"))
    bars.close()
    assert "\x1b]" not in screen.getvalue()
    assert screen.getvalue().count(r"\x1b]52;c;cm0=\x07") >= 3


def test_a_download_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, bars = terminal(monkeypatch), Bars()
    bars(Event("start", "checkpoint", total=200_000_000))
    bars(Event("progress", "checkpoint", done=50_000_000, total=200_000_000))
    bars.close()
    assert "50.0/200.0 MB" in seen(screen)


def test_what_is_done_stays_and_its_line_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, bars = terminal(monkeypatch), Bars()
    bars(Event("start", "a"))
    bars(Event("start", "b"))
    bars(Event("made", "a", seconds=1.5))
    assert "made  a  1.5 s\n" in seen(screen)
    assert SHOWN not in screen.getvalue(), "b still goes on"
    bars(Event("failed", "b", text="no room"))
    assert "FAILED b: no room\n" in seen(screen)
    assert screen.getvalue().rindex(SHOWN) > screen.getvalue().rindex(HIDDEN)
    bars(Event("note", "c", text="[b] is stale"))
    assert seen(screen).endswith("note  c: [b] is stale\n")


def test_the_cursor_comes_back_however_the_work_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, bars = terminal(monkeypatch), Bars()
    bars(Event("start", "engine"))
    bars(Event("log", "unheard of", text="no line of its own"))
    bars.close()
    assert screen.getvalue().rindex(SHOWN) > screen.getvalue().rindex(HIDDEN)
    assert "no line of its own" not in seen(screen)
