"""config show."""

import click

from forge.cli.output import Output, verb
from forge.cli.text import table
from forge.settings import Worth


@click.group()
def config() -> None:
    """What is said once: the config file and FORGE_* variables.

    For a person or a site; a verb's own option wins.
    """


@config.command()
@verb
def show(output: Output) -> None:
    """Show every key with its value, and where that comes from: the config file, a variable, or forge's own default.

    \b
    Example:
        forge config show
    """
    import os

    from forge.settings import place, shown

    found = shown(os.environ)
    rows = [("KEY", "VALUE", "FROM"), *((each.key, _told(each.value), each.source) for each in found)]
    file = place()
    document = {"file": str(file), "exists": file.exists(), "settings": found}
    output.result(document, f"{table(rows)}\n\n{file}{'' if file.exists() else ' (there is none)'}")


def _told(value: Worth) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "-" if value in (None, "") else str(value)
