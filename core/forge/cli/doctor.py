"""doctor."""

from pathlib import Path

import click

from forge.cli.build import RUNTIME
from forge.cli.output import Output, verb

COLOURS = {"ok": "green", "remark": "cyan", "warning": "yellow", "problem": "red"}


@click.command()
@click.argument("recipes", nargs=-1, type=click.Path(path_type=Path))
@RUNTIME
@verb
def doctor(output: Output, recipes: tuple[Path, ...], runtime: str | None) -> None:
    """Look at what RECIPES need of this machine and the network, and say how to mend what is missing.

    A deployment's file stands for its recipes and for where it is served. Without any file everything is looked at. Exit code
    11 when a given recipe cannot be built or served here.

    \b
    Example:
        forge doctor recipes/gemma-2b-it.toml
        forge doctor deployments/two-chatbots.toml
    """
    from forge.api.forge import Forge
    from forge.errors import HostError
    from forge.schema.values import RuntimeKind

    found = Forge.here(output.listener).examine(recipes, runtime=RuntimeKind(runtime) if runtime else None)
    counts = {str(status): sum(each.status == status for each in found) for status in COLOURS}
    lines: list[str] = []
    for each in found:
        status = click.style(f"{each.status:<8}", fg=COLOURS[each.status])
        lines.append(f"{status} {each.check:<14} {each.what}")
        if each.hint and each.status != "ok":
            lines.append(f"{'':24}-> {each.hint}")
    told = ", ".join(f"{count} {status}{'s' if count != 1 and status != 'ok' else ''}" for status, count in counts.items())
    output.result({"findings": found, "counts": counts}, "\n".join((*lines, told)))
    if counts["problem"]:
        raise SystemExit(HostError.exit_code)
