"""fit."""

from pathlib import Path
from typing import Any

import click

from forge.cli.build import RECIPES, RUNTIME
from forge.cli.output import Output, verb
from forge.cli.param_types import GPU


@click.command()
@RECIPES
@click.option("--gpu", default="", type=GPU, help='A card to judge for, such as "RTX 4090"; the GPUs that are here otherwise.')
@RUNTIME
@click.option("--page", "file", type=click.Path(dir_okay=False), help="Draw it too, as bars in one HTML file.")
@verb
def fit(output: Output, recipes: tuple[str, ...], gpu: str, runtime: Any, file: str | None) -> None:
    """Say what RECIPES need in memory, and whether a GPU takes it.

    And on disk; before any weights are fetched. Several recipes share one GPU, in the order in which they are named. Exit
    code 11 when something does not fit.

    \b
    Example:
        forge fit recipes/llama-7b.toml --gpu "RTX 4090"
        forge fit gemma-2b-it llama-7b --gpu "RTX 4090" --page fit.html
    """
    from forge.cli.fit_report import document, lines
    from forge.errors import HostError

    found = output.here().fit(recipes, gpu=gpu, runtime=runtime)
    if file:
        from forge.cli.charts import keep
        from forge.cli.charts.fit import page_of

        keep(output, Path(file), page_of(found))
    output.result(document(found), "\n".join(lines(found)))
    if not found.fit:
        raise SystemExit(HostError.exit_code)
