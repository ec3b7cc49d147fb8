"""build, plan, lock, new."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from forge.cli.output import Output, verb
from forge.cli.param_types import EXAMPLE, RECIPE, RUNTIME_NAME
from forge.cli.text import size, table

RECIPES = click.argument("recipes", nargs=-1, required=True, type=RECIPE)
DRAWN = (".svg", ".html")
RUNTIME = click.option("--runtime", type=RUNTIME_NAME, help="Build for this runtime, whatever the recipe says.")
LOCKED = click.option("--locked", is_flag=True, help="Refuse to run when a recipe's lock is missing or stale.")
JOBS = click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 256),
    help="Steps that may compute side by side; downloads come beside them. [default: half the processors, 2 to 4]",
)
EXECUTOR = click.option(
    "--executor",
    type=click.Choice(["docker", "local", "ray"]),
    help="Where commands run: in containers, in this environment (inside NVIDIA's container), or on a cluster's machines. "
    "[default: the recipe's]",
)
REMOTE = click.option(
    "--remote",
    metavar="URL",
    help="The store that several machines share (docs/remote.md); none: not asked. [default: the config file's]",
)


def _inside(_context: click.Context, _option: click.Parameter, place: str) -> bool:
    return place == "inside"


PREFIXED = click.option("--prefixed", is_flag=True, help="Name the models <recipe>-<role>, also for a single recipe.")
REPOSITORY = click.option(
    "--repository",
    type=click.Path(file_okay=False),
    help="The model repository. [default: model-repository]",
)
ASSETS = click.option(
    "--assets",
    "inside",
    type=click.Choice(["beside", "inside"]),
    callback=_inside,
    default="beside",
    show_default=True,
    help="Where tokenizers and engines stand: beside the models, or inside a model's folder, as a plain tritonserver needs.",
)
RENAME = click.option(
    "--rename-plain",
    is_flag=True,
    help="Publish a model with plain names, that is there already, under its prefix to make room.",
)


@click.command()
@click.argument("recipes", nargs=-1, type=RECIPE)
@click.option(
    "--bundle",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Build what this bundle was made of, in place of RECIPES, and ask no network (docs/bundle.md).",
)
@click.option(
    "--into",
    type=click.Path(file_okay=False),
    help="Where the bundle's recipes are laid. [default: a folder of the bundle's name]",
)
@click.option(
    "--repository",
    type=click.Path(file_okay=False),
    help="The model repository. [default: model-repository, or what the deployment says]",
)
@RUNTIME
@LOCKED
@PREFIXED
@ASSETS
@RENAME
@JOBS
@EXECUTOR
@REMOTE
@click.option("--until", type=click.Choice(["fetch", "convert", "build"]), help="End there, and publish nothing.")
@verb
def build(
    output: Output,
    recipes: tuple[str, ...],
    bundle: str | None,
    into: str | None,
    repository: str | None,
    jobs: int | None,
    executor: Any,
    remote: str | None,
    until: str | None,
    **said: Any,
) -> None:
    """Fetch, convert and publish RECIPES into a model repository.

    Several recipes share one repository; their models are then named <recipe>-<role>. What they share is made once, what
    does not wait for each other is made side by side; a GPU has one step at a time. Or one deployment file that names them.

    \b
    Example:
        forge build recipes/smollm2-135m-instruct.toml
        forge build --bundle smollm2.forge
    """
    if bundle:
        if recipes or any(said.values()) or executor or remote or until:
            raise click.UsageError("a bundle says itself what is built and how: --repository, --into and -j go with --bundle")
        from forge.build.bundle.opened import named_after

        place = into or named_after(Path(bundle))
        built = output.here(jobs=jobs).unbundle(bundle, place, repository=repository)
        output.say(f"its recipes lie in {place}")
        conclude(output, built)
        return
    if not recipes or into:
        raise click.UsageError("--into goes with --bundle" if into else "Missing argument 'RECIPES...'.")
    if not (until or said["rename_plain"] or output.verbose):
        words = {name: value for name, value in said.items() if name != "rename_plain"}
        if done := done_already(recipes, repository, words):
            for step in done.steps:
                output.say(f"held  {step.name}  {size(step.size)}")
            output.result(*told(done))
            return
    from forge.plan.steps import Stage
    from forge.schema.values import BuildOptions

    shop, options = output.here(jobs=jobs, executor=executor, remote=remote), BuildOptions(**said)
    if until:
        steps = shop.make(recipes, Stage[until.upper()], options).steps
        output.result({"made": [{"step": step.name, "key": step.key} for step in steps]}, f"made all up to: {until}")
        return
    conclude(output, shop.build(recipes, options, repository=repository))


def conclude(output: Output, built: Any) -> None:
    """Say what was published (``forge.api.outcome``) and what a check of it found; exit code 8 where it would not serve."""
    for each in built.findings:
        tell = output.warn if each.severity == "error" else output.say
        tell(f"{each.severity}: {each.file}: {each.what}\n    {each.fix} [{each.rule}; see docs/rules.md]")
    output.result(*told(built))
    if built.broken:
        from forge.errors import RepositoryError

        raise SystemExit(RepositoryError.exit_code)


def done_already(recipes: tuple[str, ...], repository: str | None, words: Mapping[str, object]) -> Any:
    """The build asked for (``forge.build.unchanged.DoneBuild``), where it is noted as done and all of it is as it was."""
    import os

    from forge.build.unchanged import Notes, question
    from forge.settings import home, read

    said = read(os.environ)
    words = words if repository else {**words, "usual": said.repository}
    return Notes(home(os.environ, said)).find(question(recipes, repository, os.getcwd(), words))


def told(built: Any) -> tuple[object, str]:
    """What a build (``forge.api.outcome``) has published, as a document and as a sentence."""
    models = [{"name": m.name, "models": {str(k): v for k, v in m.roles.items()}, "entry": m.entry} for m in built.models]
    document: dict[str, object] = {
        "repository": str(built.repository),
        "models": models,
        "linked_bytes": built.linked,
        "copied_bytes": built.copied,
        "findings": built.findings,
    }
    if nodes := getattr(built, "nodes", ()):  # a build that is noted as done was made here
        document["nodes"] = nodes
    names = ", ".join(model.name for model in built.models)
    text = f"{names} published into {built.repository}"
    if built.copied:
        text += f" ({size(built.copied)} copied: the store is on another filesystem)"
    return document, text


@click.command()
@RECIPES
@RUNTIME
@LOCKED
@PREFIXED
@ASSETS
@EXECUTOR
@REMOTE
@click.option("--graph", type=click.Path(dir_okay=False), help="Draw the steps too, into this .svg or .html file.")
@verb
def plan(
    output: Output,
    recipes: tuple[str, ...],
    executor: Any,
    remote: str | None,
    graph: str | None,
    **said: Any,
) -> None:
    """Show what a build of RECIPES would do, and whether it fits.

    Each step and why; nothing runs. A step is local, remote (taken from the shared store), a miss, or spared (all that needs
    it is there).

    \b
    Example:
        forge plan recipes/gemma-2b-it.toml
        forge plan recipes/gemma-2b-it.toml --graph plan.svg
    """
    from forge.cli.fit_report import document as figures, lines, reason
    from forge.schema.values import BuildOptions

    shop = output.here(executor=executor, remote=remote)
    if graph and Path(graph).suffix not in DRAWN:
        raise click.BadParameter(f"a name that ends in {' or '.join(DRAWN)} says what is drawn", param_hint="--graph")
    found = shop.foresee(recipes, BuildOptions(**said))
    if graph:
        _draw(output, found, Path(graph))
    rows = [("STEP", "KEY", "STATE", "SIZE", "WHY")]
    rows += [(o.name, o.key[:12], str(o.state), size(o.size), reason(o)) for o in found.steps]
    told = "\n".join(lines(found.fit)) if found.fit else f"whether it fits is not known: {found.unfit}"
    document = figures(found.fit) if found.fit else None
    answer = {"steps": found.steps, "notes": found.plan.notes, "fit": document, "unfit": found.unfit}
    output.result(answer, f"{table(rows)}\n\n{told}".rstrip())


def _draw(output: Output, found: Any, file: Path) -> None:
    from forge.cli.charts import keep, plan as charts

    keep(output, file, (charts.picture_of if file.suffix == ".svg" else charts.page_of)(found))


@click.command()
@click.argument("recipe", type=RECIPE)
@click.option("--upgrade", is_flag=True, help="Move every pin to what the world says now.")
@verb
def lock(output: Output, recipe: str, upgrade: bool) -> None:
    """Pin RECIPE's commit, files and image in RECIPE.lock. Only this command moves a lock.

    \b
    Example:
        forge lock recipes/gemma-2b-it.toml --upgrade
    """
    file, changed = output.here().lock(recipe, upgrade=upgrade)
    output.result({"lock": str(file), "changed": changed}, f"{file}: {'written' if changed else 'unchanged'}")


@click.command()
@click.argument("source", required=False)
@click.option("--example", type=EXAMPLE, help="Copy this recipe of forge's out, in place of SOURCE.")
@click.option("-o", "--output", "file", type=click.Path(), help="Write here instead of to stdout.")
@click.option("--name", help="The recipe's name; made from the source's otherwise.")
@click.option("--revision", help="Branch, tag or commit of a hub repository. [default: main]")
@verb
def new(
    output: Output, source: str | None, example: str | None, file: str | None, name: str | None, revision: str | None
) -> None:
    """Write a recipe for a checkpoint, or copy a shipped one.

    SOURCE is a hub id, a git URL, a folder, or a .gguf file.

    \b
    Example:
        forge new google/gemma-2b-it -o recipes/my-gemma.toml
        forge new --example gemma-2b-it -o my-gemma.toml
    """
    from forge.errors import ForgeError

    target = Path(file) if file else None
    if (source is None) == (example is None):
        raise click.UsageError("name a SOURCE or a shipped recipe with --example, and not both")
    if example and (name or revision):
        raise click.UsageError("--example copies a recipe as it is: --name and --revision are for a SOURCE")
    shop = output.here()
    base = target.parent if target else Path()
    text = shop.example(example) if example else shop.draft(source or "", name, revision or "main", base)
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
@click.argument("recipe", type=RECIPE)
@verb
def dockerfile(output: Output, recipe: str) -> None:
    """Print the Dockerfile of RECIPE's image.

    The one that a build would make it from.

    \b
    Example:
        forge dockerfile recipes/gemma-2b-it.toml
    """
    text = output.here().dockerfile(recipe)
    output.result({"dockerfile": text}, text.rstrip("\n"))
