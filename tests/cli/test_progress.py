"""What somebody without a terminal sees of long work: a line for what happened, and one now and then of what goes on."""

import pytest

from forge.cli.progress import plain
from forge.events import Event


def test_a_step_that_takes_long_is_heard_of_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    tell = plain(lambda: now[0])

    def after(seconds: float, *events: Event) -> str:
        now[0] += seconds
        for event in events:
            tell(event)
        return capsys.readouterr().err

    log = Event("log", "verify", text="prompt 3 of 16: " + "word " * 40)
    assert after(0.0, Event("start", "verify")) == "...   verify\n"
    assert after(9.0, log) == ""
    assert after(2.0, Event("log", "verify", text=" "), log, log) == f"...   verify: {'prompt 3 of 16: ' + 'word ' * 16}...\n"
    assert after(11.0, Event("progress", "model", done=10**9, total=4 * 10**9)) == "...   model: 1.0 GB of 4.0 GB\n"
    assert after(11.0, Event("progress", "model", done=10**9)) == "...   model: 1.0 GB\n"
    assert after(11.0, Event("note", "model", text="a sentence"), log) == "note  model: a sentence\n"
