"""build, plan, lock, new."""

import click

from forge.cli.show import Output, size, table, verb

RECIPES = click.argument("recipes", nargs=-1, required=True, type=click.Path())
RUNTIME = click.option(
    "--runtime",
    type=click.Choice(["engine", "llmapi", "twin"]),
    help="Build for this runtime, whatever the recipe says.",
)
LOCKED = click.option("--locked", is_flag=True, help="Refuse to run when a recipe's lock is missing or stale.")
PREFIXED = click.option("--prefixed", is_flag=True, help="Name the models <recipe>-<role>, also for a single recipe.")


@click.command()
@RECIPES
@click.option(
    "--repository",
    type=click.Path(file_okay=False),
    default="model-repository",
    show_default=True,
    help="The model repository to publish into.",
)
@RUNTIME
@LOCKED
@PREFIXED
@click.option("--until", type=click.Choice(["fetch", "convert", "build"]), help="End there, and publish nothing.")
@verb
def build(
    output: Output,
    recipes: tuple[str, ...],
    repository: str,
    runtime: str | None,
    locked: bool,
    prefixed: bool,
    until: str | None,
) -> None:
    """Fetch, convert, and publish RECIPES into a model repository that is ready to serve.

    Several recipes share one repository; their models are then named <recipe>-<role>.

    \b
    Example:
        forge build recipes/smollm2-135m-instruct.toml
    """
    from forge.model import RuntimeKind
    from forge.steps import Stage
    from forge.workshop import Workshop

    shop = Workshop.here(output.listener)
    kind = RuntimeKind(runtime) if runtime else None
    if until:
        steps = shop.make(recipes, Stage[until.upper()], runtime=kind, locked=locked).steps
        output.result({"made": [{"step": step.name, "key": step.key} for step in steps]}, f"made all up to: {until}")
        return
    built = shop.build(recipes, repository=repository, runtime=kind, locked=locked, prefixed=prefixed)
    models = [{"name": m.name, "models": {str(k): v for k, v in m.roles.items()}, "entry": m.entry} for m in built.models]
    document = {
        "repository": str(built.repository),
        "models": models,
        "linked_bytes": built.linked,
        "copied_bytes": built.copied,
    }
    names = ", ".join(model.name for model in built.models)
    text = f"{names} published into {built.repository}"
    if built.copied:
        text += f" ({size(built.copied)} copied: the store is on another filesystem)"
    output.result(document, text)


@click.command()
@RECIPES
@RUNTIME
@LOCKED
@PREFIXED
@verb
def plan(output: Output, recipes: tuple[str, ...], runtime: str | None, locked: bool, prefixed: bool) -> None:
    """Show what a build of RECIPES would do: each step, held or to be made, and why. Runs nothing.

    \b
    Example:
        forge plan recipes/gemma-2b-it.toml
    """
    from forge.model import RuntimeKind
    from forge.workshop import Workshop

    shop = Workshop.here(output.listener)
    wanted = shop.plan(recipes, runtime=RuntimeKind(runtime) if runtime else None, locked=locked, prefixed=prefixed)
    outlook = shop.outlook(wanted)
    rows = [("STEP", "KEY", "STATE", "SIZE", "WHY")]
    rows += [(o.name, o.key[:12], "hit" if o.held else "miss", size(o.size), o.why) for o in outlook]
    output.result({"steps": outlook}, table(rows))


@click.command()
@click.argument("recipe", type=click.Path())
@click.option("--upgrade", is_flag=True, help="Move every pin to what the world says now.")
@verb
def lock(output: Output, recipe: str, upgrade: bool) -> None:
    """Pin RECIPE's commit, files and image in RECIPE.lock. Only this command moves a lock.

    \b
    Example:
        forge lock recipes/gemma-2b-it.toml --upgrade
    """
    from forge.workshop import Workshop

    file, changed = Workshop.here(output.listener).lock(recipe, upgrade=upgrade)
    output.result({"lock": str(file), "changed": changed}, f"{file}: {'written' if changed else 'unchanged'}")


@click.command()
@click.argument("source")
@click.option("-o", "--output", "file", type=click.Path(), help="Write here instead of to stdout.")
@click.option("--name", help="The recipe's name; made from the source's otherwise.")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit of a hub repository.")
@verb
def new(output: Output, source: str, file: str | None, name: str | None, revision: str) -> None:
    """Write a recipe for the checkpoint SOURCE: a hub id, a git URL, a folder, or a .gguf file.

    \b
    Example:
        forge new google/gemma-2b-it -o recipes/my-gemma.toml
    """
    from pathlib import Path

    from forge.errors import ForgeError
    from forge.workshop import Workshop

    target = Path(file) if file else None
    text = Workshop.here(output.listener).draft(source, name, revision, target.parent if target else Path())
    if target is None:
        output.result({"recipe": text}, text.rstrip("\n"))
        return
    try:
        with target.open("x", encoding="utf-8") as sink:
            sink.write(text)
    except FileExistsError:
        raise ForgeError("there is a file already", where=str(file), hint="choose another name") from None
    output.result({"recipe": text, "file": file}, f"{file}: written; see what it builds with `forge plan {file}`")


@click.command()
@click.argument("recipe", type=click.Path())
@verb
def dockerfile(output: Output, recipe: str) -> None:
    """Print the Dockerfile that a build would make RECIPE's image from.

    \b
    Example:
        forge dockerfile recipes/gemma-2b-it.toml
    """
    from forge.workshop import Workshop

    text = Workshop.here(output.listener).dockerfile(recipe)
    output.result({"dockerfile": text}, text.rstrip("\n"))
