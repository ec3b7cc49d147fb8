"""config show, completion."""

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


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@verb
def completion(output: Output, shell: str) -> None:
    """Print what completes forge's words in a shell.

    Verbs, options, recipes, served models and GPUs complete then. For each new shell, put the line of the example into
    ~/.bashrc, the same with zsh into ~/.zshrc, or `forge completion fish | source` into ~/.config/fish/config.fish.

    \b
    Example:
        eval "$(forge completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click knows the three
    script = kind(click.get_current_context().find_root().command, {}, "forge", "_FORGE_COMPLETE").source()
    output.result({"shell": shell, "script": script}, script.rstrip("\n"))


def _told(value: Worth) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "-" if value in (None, "") else str(value)
