"""cluster check, node labels."""

import click

from forge.cli.build import REMOTE
from forge.cli.output import Output, verb
from forge.cli.param_types import RECIPE
from forge.cli.text import size, table


@click.group()
def cluster() -> None:
    """The machines that `--executor ray` spreads steps over.

    docs/cluster.md says how to have some.
    """


@cluster.command()
@click.argument("recipes", nargs=-1, type=RECIPE)
@REMOTE
@verb
def check(output: Output, recipes: tuple[str, ...], remote: str | None) -> None:
    """Ask all machines of the cluster what they are, and say where they differ.

    forge and its plugins, Python, and that the shared store can be written: a build refuses machines that differ in those.
    NVIDIA's driver, free disk, and the images of RECIPES: worth knowing. Exit code 11 where a build would refuse.

    \b
    Example:
        forge cluster check
        forge cluster check deployments/two-chatbots.toml
    """
    from forge.cluster.census import Facts
    from forge.errors import HostError

    found = output.here(executor="ray", remote=remote).examine_cluster(recipes)
    rows: list[tuple[str, ...]] = [("NODE", "STEPS", "GPU", "DOCKER", "FORGE", "PYTHON", "DRIVER", "FREE")]
    for node in found.nodes:
        told = found.facts[node.id]
        gpu = f"{len(node.gpus)} x {'+'.join(sorted(node.sm))}" if node.gpus else "-"
        what = ("?",) * 4
        if isinstance(told, Facts):
            what = (told.forge[:8], told.python, told.driver or "-", size(told.free))
        rows.append((node.name, str(node.slots), gpu, "yes" if node.docker else "no", *what))
    lines = [f"{'error' if each.stops else 'note':<5} {each.node} {each.what}" for each in found.differences]
    output.result(found, "\n".join([table(rows), *(["", *lines] if lines else ["", "all alike"])]))
    if found.stops:
        raise SystemExit(HostError.exit_code)


@click.group()
def node() -> None:
    """This machine, as one of a cluster."""


@node.command()
@click.option("--address", metavar="HOST:PORT", help="Of the cluster that it joins; without it the command begins one.")
@click.option("--name", help="What it is called there. [default: its host name]")
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 256), help="Steps that it makes side by side. [default: as for `forge build`]"
)
@verb
def labels(output: Output, address: str | None, name: str | None, jobs: int | None) -> None:
    """Print how this machine joins a cluster of Ray's: the command, with what the machine is.

    \b
    Example:
        forge node labels --address gpu-1:6379
    """
    found = output.here(jobs=jobs).node_labels(name or "")
    told = {f"forge.{key}": value for key, value in found.labels.items()}
    command = found.command(address or "")
    output.result({"labels": told, "resources": found.resources, "command": command}, command)
