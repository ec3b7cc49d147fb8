"""completion."""

import click

from forge.cli.output import Output, verb


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
