"""docs/cli.md is what click says of every verb; and no page or recipe shows a verb or an option that there is not.

FORGE_REWRITE_DOCS=1 writes the page anew: `FORGE_REWRITE_DOCS=1 pytest tests/docs/test_docs_cli.py`, then read the diff.
"""

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli_verbs import commands
from documented import lines, wrong

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cli.md"
REWRITE = "FORGE_REWRITE_DOCS"
HEAD = """# Every verb and option

What `forge VERB --help` says, written from it by a test. Every verb takes `--json` (one document on stdout, errors too),
`-q`/`--quiet` (no progress on stderr) and `-v`/`--verbose` (the structured log on stderr); what a verb's end means is
in [exit codes](exit-codes.md). The same from Python: [python-api.md](python-api.md).

"""
COMMON = {"as_json", "quiet", "verbose"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = [*PAGES, *sorted((ROOT / "recipes").glob("*.toml")), *sorted((ROOT / "deployments").glob("*.toml"))]


def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A verb and the verbs inside it, by their whole names."""
    yield name, command
    if isinstance(command, click.Group):
        for inner in sorted(command.commands):
            yield from walk(f"{name} {inner}", command.commands[inner])


VERBS = {name: each for verb, command in commands().items() for name, each in walk(verb, command)}


def cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def prose(text: str) -> str:
    """A help text as Markdown: paragraphs as they are, what click is told not to wrap as code."""
    parts = re.split(r"\n\s*\n", inspect.cleandoc(text))
    whole: list[str] = []
    for part in parts:
        if part.startswith("\b"):
            heading, _, lines = part.removeprefix("\b").strip("\n").partition("\n")
            kept = f"{heading}\n{lines}" if not heading.startswith("Example") else lines
            whole.append(f"```\n{inspect.cleandoc(kept)}\n```")
        else:
            whole.append(part.replace("\n", " "))
    return "\n\n".join(whole)


def table(command: click.Command, context: click.Context) -> str:
    options = [p for p in command.params if isinstance(p, click.Option) and p.name not in COMMON]
    records = [record for option in options if (record := option.get_help_record(context))]
    rows = "".join(f"| `{cell(names)}` | {cell(text)} |\n" for names, text in records)
    return f"\n| option | |\n|---|---|\n{rows}" if rows else ""


def section(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"forge {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    deeper = "#" * (1 + len(name.split()))
    return f"{deeper} forge {name}\n\n`forge {name} {usage}`\n\n{prose(command.help or '')}\n{table(command, context)}"


def test_the_page_is_what_the_verbs_say_of_themselves() -> None:
    page = HEAD + "\n".join(section(*each) for each in VERBS.items())
    if os.environ.get(REWRITE) == "1":
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, f"{REWRITE}=1 pytest tests/docs/test_docs_cli.py writes docs/cli.md anew"


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)
def test_every_command_line_that_is_shown_can_be_typed(page: Path) -> None:
    assert {line: fault for line in lines(page) if (fault := wrong(line))} == {}


def test_what_is_shown_is_found_and_what_is_missing_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`forge serv`, `forge build X --jbos 2`:\n\n```\n$ forge cache gc --older 3d   # old\n```\n")
    assert {line: wrong(line) for line in lines(page)} == {
        "serv": "no verb serv",
        "build X --jbos 2": "--jbos",
        "cache gc --older 3d   # old": "--older",
    }


def test_many_command_lines_are_looked_at() -> None:
    assert sum(len(lines(page)) for page in SHOWN) > 100
