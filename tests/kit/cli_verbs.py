"""Every verb of the command line, imported."""

import click

from forge.cli import VERBS, main


def commands() -> dict[str, click.Command]:
    """By name, in the order of the list."""
    context = click.Context(main)
    found = {verb.name: main.get_command(context, verb.name) for verb in VERBS}
    return {name: command for name, command in found.items() if command is not None}
