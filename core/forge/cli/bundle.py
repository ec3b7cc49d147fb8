"""bundle: made and looked into; `forge build --bundle` stands with build."""

from pathlib import Path
from typing import Any

import click

from forge.cli.build import ASSETS, EXECUTOR, JOBS, LOCKED, PREFIXED, REMOTE, RUNTIME
from forge.cli.output import Output, verb
from forge.cli.param_types import RECIPE
from forge.cli.text import size, table

BUNDLE_FILE = click.Path(dir_okay=False)


@click.command()
@click.argument("recipes", nargs=-1, type=RECIPE)
@click.option("-o", "--output", "file", type=BUNDLE_FILE, help="The bundle to write; a bundle that is there is replaced.")
@click.option("--list", "listed", type=BUNDLE_FILE, metavar="FILE", help="Show what is in this bundle, and write none.")
@click.option("--with", "including", type=click.Choice(["weights"]), help="Put in what was fetched, too: it may be gated.")
@RUNTIME
@LOCKED
@PREFIXED
@ASSETS
@JOBS
@EXECUTOR
@REMOTE
@verb
def bundle(
    output: Output,
    recipes: tuple[str, ...],
    file: str | None,
    listed: str | None,
    including: str | None,
    jobs: int | None,
    executor: Any,
    remote: str | None,
    **said: Any,
) -> None:
    """Put all that a build of RECIPES needs into one file.

    For a site without a network: `forge build --bundle FILE` builds there, and `forge serve` serves. Made here is what is not
    held yet; published is nothing.

    \b
    Example:
        forge bundle recipes/smollm2-135m-instruct.toml -o smollm2.forge
        forge bundle --list smollm2.forge
    """
    if listed:
        if recipes or file:
            raise click.UsageError("--list shows a bundle: it goes without RECIPES and without --output")
        _show(output, Path(listed))
        return
    if not recipes or not file:
        raise click.UsageError("name RECIPES and the file to write: forge bundle RECIPE -o FILE")
    from forge.schema.values import BuildOptions

    shop = output.here(jobs=jobs, executor=executor, remote=remote)
    made = shop.bundle(recipes, file, BuildOptions(**said), weights=including == "weights")
    held = [f"{len(made.steps)} artifacts", *([f"{len(made.images)} images"] if made.images else [])]
    output.result(
        made, f"{made.file}: {size(made.size)}, {' and '.join(held)}; build it with `forge build --bundle {made.file}`"
    )


def _show(output: Output, file: Any) -> None:
    from forge.build.bundle.opened import look

    found = look(file, output.here().notary.trust)
    said = found.contents
    rows = [("KEY", "STEP", "SIZE", "HOW")]
    rows += [
        (one.key[:12], one.step, size(one.size), "laid anew" if one.key in said.environments else "taken")
        for one in sorted(found.held, key=lambda one: one.step)
    ]
    images = [(one.content.partition(":")[2][:12], one.reference, size(one.size), "loaded") for one in said.images]
    names = ", ".join(said.named)
    lines = [
        f"{names}, {size(found.size)}, made {found.date} by {said.by}",
        f"for {said.platform}, Python {said.python}" if said.environments else f"for {said.platform}",
        f"signed: {found.signed}",
        "",
        table([*rows, *images]),
        "",
        *(f"text  {name}" for name in sorted(said.texts)),
    ]
    document = {
        "recipes": said.named,
        "texts": sorted(said.texts),
        "artifacts": found.held,
        "images": said.images,
        "size": found.size,
        "by": said.by,
        "platform": said.platform,
        "python": said.python,
        "signed": found.signed,
        "attestation": said.attestation,
    }
    output.result(document, "\n".join(lines))
