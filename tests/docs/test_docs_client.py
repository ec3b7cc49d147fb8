"""docs/client.md says what is true: its examples run against a served model, its words are those of Request."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli_verbs import commands
from forge.client import Request
from tiny_served import Tiny

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.slow
def test_the_examples_run(tiny: Tiny, home: Path) -> None:
    """All in one interpreter, against the tiny model in the place of the page's."""
    programs = [
        text.replace("127.0.0.1:8001", tiny.address).replace("smollm2-135m-instruct", "tiny") for text in EXAMPLES.values()
    ]
    assert len(programs) == 4
    environ = {**os.environ, "FORGE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(programs)], check=False, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "log-probability -" in done.stdout


def test_every_word_of_a_request_is_in_the_table() -> None:
    table = PAGE.partition("### Request")[2].partition("### Chunk")[0]
    told = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))))
    assert told == set(Request.__struct_fields__) - {"model", "prompt", "max_tokens", "stream"}


def test_the_commands_take_the_options_that_the_page_shows() -> None:
    shown = PAGE.partition("## forge generate and chat")[2]
    for line in re.findall(r"^\$ forge (.+)$", shown, re.MULTILINE):
        verb, *words = re.findall(r'"[^"]*"|\S+', line)
        command = commands()[verb]
        options = {name for option in command.params for name in option.opts}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= options
        assert isinstance(command, click.Command)
