"""plugins, new-plugin, toolchain, schema."""

from collections.abc import Iterator
from typing import Any

import click

from forge.cli.output import Output, verb
from forge.cli.param_types import IMAGE
from forge.cli.text import table


@click.command()
@verb
def plugins(output: Output) -> None:
    """Show the installed families and variants, and their health.

    And which distribution each comes from.

    \b
    Example:
        forge plugins
    """
    from forge.plan.families import installed

    found = installed()
    rows = [("NAME", "KIND", "DISTRIBUTION", "VERSION", "HEALTH")]
    rows += [(p.name, p.kind, p.distribution, p.version, p.health) for p in found]
    output.result({"plugins": found}, "\n".join((table(rows), *(line for p in found for line in _blamed(p, output.verbose)))))


def _blamed(plugin: Any, verbose: bool) -> Iterator[str]:
    """Where a broken plugin is at fault; with -v how it came there."""
    if plugin.where:
        yield f"\n{plugin.name}: {plugin.where}"
        yield f"    {plugin.source}"
    if plugin.trace:
        yield plugin.trace.rstrip() if verbose else "    -v shows the traceback"


@click.command("new-plugin")
@click.argument("name")
@click.option("--architecture", "architectures", multiple=True, required=True, help="As config.json names it; may be repeated.")
@click.option("--scripts", default="", help="Folder of its scripts in NVIDIA's image. [default: NAME]")
@click.option("-o", "--output", "folder", type=click.Path(), help="The new folder. [default: forge-NAME]")
@verb
def new_plugin(output: Output, name: str, architectures: tuple[str, ...], scripts: str, folder: str | None) -> None:
    """Write a plugin for a family: a distribution with tests.

    The tests pass: what differs for the family NAME is changed there.

    \b
    Example:
        forge new-plugin internlm --architecture InternLM2ForCausalLM
    """
    from pathlib import Path

    from forge.plan.families import claimed, serving
    from forge.testing import new_plugin as write

    files = [str(file) for file in write(name, architectures, scripts, Path(folder) if folder else None)]
    if others := serving(architectures, claimed()):
        output.warn(f'served already by {" and ".join(others)}: a recipe has to say family = "{name}", or theirs')
    place = str(Path(files[0]).parent)
    told = [*files, "", f"go on with: cd {place} && pip install -e . pytest && pytest"]
    output.result({"folder": place, "files": files}, "\n".join(told))


@click.command()
@click.argument("image", type=IMAGE)
@click.argument("program", required=False, default="")
@click.option("--all", "every", is_flag=True, help="Also scripts that convert, quantize and build nothing.")
@verb
def toolchain(output: Output, image: str, program: str, every: bool) -> None:
    """List an image's conversion scripts, and the flags of one.

    IMAGE is a tag of NVIDIA's (25.08), a reference, or "local" inside NVIDIA's container. PROGRAM is a folder of
    scripts, a script, or trtllm-build; it is asked with --help, in the image.

    \b
    Example:
        forge toolchain 25.08
        forge toolchain 25.08 gemma
        forge toolchain 25.08 trtllm-build
    """
    from forge.build.toolbox import Toolbox

    found = output.here().toolchain(image, program)
    shown = [each for each in found.scripts if program or every or each.maker]
    document = Toolbox(found.image, found.trtllm, found.examples, tuple(shown))
    head = f"{found.image}" + (f" (TensorRT-LLM {found.trtllm})" if found.trtllm else "")
    if program:
        output.result(document, "\n\n".join((head, *map(_flags, shown))))
        return
    rows = [("SCRIPT", "FLAGS", "IN A PLUGIN"), *((each.path, str(len(each.flags) or "?"), each.called) for each in shown)]
    left = len(found.scripts) - len(shown)
    more = f"\n\n{left} more scripts run or measure models: --all shows them" if left else ""
    output.result(document, f"{head}\n\n{table(rows)}{more}")


def _flags(script: Any) -> str:
    """A script's flags, a line each."""
    source = "" if script.asked else ", by its source"
    rows = [("FLAG", "VALUE", "DEFAULT", "MEANING")]
    rows += [(", ".join(f.names), " ".join(f.choices) or f.takes, f.default, f.meaning) for f in script.flags]
    called = f"\nin a plugin: {script.called}" if script.called else ""
    return f"{script.path}{source}{called}\n{table(rows)}"


@click.command()
@click.argument("what", type=click.Choice(["recipe", "deployment"]), default="recipe")
@verb
def schema(output: Output, what: str) -> None:
    """Print the JSON schema of a recipe or a deployment.

    An editor that is told of it completes keys and marks mistakes.

    \b
    Example:
        forge schema > recipe.schema.json
        forge schema deployment > deployment.schema.json
    """
    import json

    from forge.recipe import deployment, reader

    document = deployment.schema() if what == "deployment" else reader.schema()
    output.result(document, json.dumps(document, indent=2))
