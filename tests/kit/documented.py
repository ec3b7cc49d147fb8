"""Command lines of forge on the pages of docs/, and what in them is not there."""

import re
from pathlib import Path

import click

from cli_verbs import commands


def lines(page: Path) -> list[str]:
    """Command lines of forge on a page: in code blocks, and in backticks."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".toml":
        return re.findall(r"^#\s+forge (.+)$", text, re.MULTILINE)
    blocks = "\n".join(re.findall(r"^[ ]*```[^\n]*\n(.*?)^[ ]*```$", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    told = re.findall(r"^(?:[$#] )?forge (?!= )(.+)$", blocks, re.MULTILINE)
    inline = re.findall(r"`(?:[A-Z_]+=\S+ )?forge ([^`]+)`", re.sub(r"^[ ]*```.*?^[ ]*```$", "", text, flags=re.M | re.S))
    return [*told, *inline]


def wrong(line: str) -> str:
    """What in a command line is not there; empty when all of it is. A recipe's word or a sentence is not looked at."""
    told = re.split(r"\s#\s|\s{3,}|\s&&\s|;|\s\|\s", line)[0].replace("...", "")
    words = re.findall(r"\"[^\"]*\"|'[^']*'|\S+", told)
    verb = words.pop(0).rstrip(",.:")
    if verb.startswith("-") or verb.isupper():
        return ""
    command = commands().get(verb)
    if command is None:
        return f"no verb {verb}"
    if isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    options = {name for each in every(command) for option in each.params for name in (*option.opts, *option.secondary_opts)}
    asked = {word.partition("=")[0] for word in words if re.fullmatch(r"--?[A-Za-z][\w-]*(=.*)?", word)}
    return " ".join(sorted(asked - options - {"--help", "-h"}))


def every(command: click.Command) -> tuple[click.Command, ...]:
    """A command, and those that it is short for: `forge bench MODEL` is `forge bench run MODEL`."""
    return (command, *command.commands.values()) if isinstance(command, click.Group) else (command,)
