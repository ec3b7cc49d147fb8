"""fetch, search."""

from typing import Any

import click

from forge.cli.build import JOBS, LOCKED, RECIPES, RUNTIME
from forge.cli.output import Output, verb
from forge.cli.param_types import GPU
from forge.cli.text import size, table


@click.command()
@RECIPES
@RUNTIME
@LOCKED
@JOBS
@verb
def fetch(output: Output, recipes: tuple[str, ...], jobs: int | None, **said: Any) -> None:
    """Download what RECIPES need, and build nothing.

    The checkpoints come into the store, each file checked; a build then takes them from there. Neither Docker nor a GPU is
    needed.

    \b
    Example:
        forge fetch recipes/gemma-2b-it.toml
    """
    from forge.schema.values import BuildOptions

    held = output.here(jobs=jobs).fetch(recipes, BuildOptions(**said))
    lines = (f"{each.name}  {size(each.size)}  {each.path}" for each in held)
    output.result({"fetched": held}, "\n".join(lines))


@click.command()
@click.argument("word")
@click.option("--gpu", default="", type=GPU, help='A card to judge for, such as "RTX 4090"; what is here otherwise.')
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="At most so many models.")
@verb
def search(output: Output, word: str, gpu: str, limit: int) -> None:
    """Look for models on the hub, and say what runs here.

    FAMILY is the plugin that builds it (vLLM, and the twin by transformers, need none). FITS compares the weights as they are
    published with 90 % of what is free; `forge fit` says more of one model. LICENCE is gated where it has to be accepted first.

    \b
    Example:
        forge search gemma --gpu "RTX 4090"
    """
    done = output.here().search(word, gpu, limit)
    rows = [("MODEL", "FAMILY", "WEIGHTS", "FITS", "LICENCE", "DOWNLOADS")]
    fits = {True: "yes", False: "no", None: "?"}
    for each in done.found:
        family = each.family or f"- ({each.architecture or 'not said'})"
        licence = "gated" if each.gated else "open"
        rows.append((each.name, family, size(each.weights or None), fits[each.fits], licence, f"{each.downloads:,}"))
    judged = f"judged for {done.place}, {size(done.room)} free; `forge run MODEL` takes one to a chat"
    output.result(
        done, f"{table(rows)}\n\n{judged}" if done.found else f"the hub has no model for text with {word!r} in its name"
    )
