"""add, remove, list."""

from typing import Any

import click

from forge.cli.build import ASSETS, JOBS, LOCKED, RECIPES, REMOTE, RENAME, REPOSITORY, RUNTIME, conclude
from forge.cli.output import Output, verb
from forge.cli.param_types import SERVED
from forge.cli.text import size, table


@click.command()
@RECIPES
@REPOSITORY
@RUNTIME
@LOCKED
@ASSETS
@RENAME
@JOBS
@REMOTE
@verb
def add(
    output: Output,
    recipes: tuple[str, ...],
    repository: str | None,
    jobs: int | None,
    remote: str | None,
    **said: Any,
) -> None:
    """Build RECIPES and publish them beside what is there.

    Each gets its prefix; what the repository holds stays.

    \b
    Example:
        forge add recipes/llama-7b.toml --rename-plain
    """
    from forge.schema.values import BuildOptions

    shop = output.here(jobs=jobs, remote=remote)
    conclude(output, shop.add(recipes, BuildOptions(**said), repository=repository))


@click.command()
@click.argument("model", type=SERVED)
@REPOSITORY
@verb
def remove(output: Output, model: str, repository: str | None) -> None:
    """Take MODEL out of a repository. The others stay as they are; what it was built from stays in the store.

    \b
    Example:
        forge remove llama-7b
    """
    shop = output.here()
    place = repository or shop.settings.repository
    shop.remove(model, place)
    output.result({"removed": model, "repository": place}, f"{model} is gone from {place}")


@click.command("list")
@REPOSITORY
@verb
def list_models(output: Output, repository: str | None) -> None:
    """List the models of a repository, and where each is served.

    With runtime, names, size, and the key of what was published.

    \b
    Example:
        forge list --repository model-repository
    """
    shop = output.here()
    place = repository or shop.settings.repository
    held = shop.models(place)
    rows = [("NAME", "RUNTIME", "PREFIX", "SIZE", "KEY", "SERVED", "MODELS")]
    rows += [
        (
            each.name,
            str(each.runtime),
            each.prefix or "(plain)",
            size(each.size),
            each.key[:12],
            each.served or "no",
            " ".join(each.models.values()),
        )
        for each in held
    ]
    text = table(rows) if held else f"nothing was published into {place}"
    output.result({"repository": place, "models": held}, text)
