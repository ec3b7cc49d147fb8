"""fit."""

import click

from forge.cli.build import RECIPES, RUNTIME
from forge.cli.names import GPU
from forge.cli.output import Output, verb


@click.command()
@RECIPES
@click.option("--gpu", default="", type=GPU, help='A card to judge for, such as "RTX 4090"; the GPUs that are here otherwise.')
@RUNTIME
@verb
def fit(output: Output, recipes: tuple[str, ...], gpu: str, runtime: str | None) -> None:
    """Say what RECIPES need in memory, and whether a GPU takes it.

    And on disk; before any weights are fetched. Several recipes share one GPU, in the order in which they are named. Exit
    code 11 when something does not fit.

    \b
    Example:
        forge fit recipes/llama-7b.toml --gpu "RTX 4090"
    """
    from forge.api.forge import Forge
    from forge.cli.figures import document, lines
    from forge.errors import HostError
    from forge.schema.values import RuntimeKind

    shop = Forge.here(output.listener)
    found = shop.fit(recipes, gpu=gpu, runtime=RuntimeKind(runtime) if runtime else None)
    output.result(document(found), "\n".join(lines(found)))
    if not found.fit:
        raise SystemExit(HostError.exit_code)
