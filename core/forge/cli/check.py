"""check, doctor."""

from pathlib import Path
from typing import Any

import click

from forge.cli.build import RUNTIME
from forge.cli.output import Output, verb
from forge.cli.param_types import RECIPE

COLOURS = {"error": "red", "warning": "yellow", "remark": "cyan"}
STATUSES = {"ok": "green", "remark": "cyan", "warning": "yellow", "problem": "red"}


@click.command()
@click.argument("repository", type=click.Path(path_type=Path), required=False)
@click.option("--image", default="", help="The image that serves it (25.08), where forge.json does not say.")
@click.option("--sarif", type=click.Path(path_type=Path, allow_dash=True), help="Write the findings as SARIF too; - is stdout.")
@click.option("--fix", is_flag=True, help="Fix what is safe to fix, and say what was changed.")
@verb
def check(output: Output, repository: Path | None, image: str, sarif: Path | None, fix: bool) -> None:
    """Find what is wrong in a Triton model REPOSITORY.

    Forge's own or any other, before a server trips over it. A deployment's file names its repository, and where that is to be
    served. Exit code 8 when an error was found. What each rule means: docs/rules.md.

    \b
    Example:
        forge check model-repository --image 25.08
        forge check deployments/two-chatbots.toml
    """
    from forge.errors import RepositoryError

    report = output.here().check(repository, image=image, fix=fix)
    if sarif is not None:
        from importlib.metadata import version

        from forge.check.sarif import write

        text = write(report.findings, report.repository, version("triton-forge"))
        if str(sarif) != "-":
            sarif.write_text(text, encoding="utf-8")
        elif not output.as_json:
            click.echo(text, nl=False)
    lines = [f"fixed    {change}" for change in report.changes]
    for each in report.findings:
        place = f"{each.file}:{each.line}" if each.line else each.file
        lines += [f"{click.style(f'{each.severity:<8}', fg=COLOURS[each.severity])} {place}: {each.what}"]
        lines += [f"{'':9}-> {each.fix} [{each.rule}]"]
    counts = [f"{count} {severity}{'s' if count != 1 else ''}" for severity, count in report.counts.items() if count]
    lines.append(", ".join(counts) or "nothing is wrong")
    if str(sarif) != "-" or output.as_json:
        document = {
            "repository": report.repository,
            "changes": report.changes,
            "findings": report.findings,
            "counts": report.counts,
        }
        output.result(document, "\n".join(lines))
    if report.failed:
        raise SystemExit(RepositoryError.exit_code)


@click.command()
@click.argument("recipes", nargs=-1, type=RECIPE)
@RUNTIME
@verb
def doctor(output: Output, recipes: tuple[str, ...], runtime: Any) -> None:
    """Say what this machine lacks for RECIPES, and how to fix it.

    The network is looked at too. A deployment's file stands for its recipes and for where it is served. Without any file
    everything is looked at. Exit code 11 when a given recipe cannot be built or served here.

    \b
    Example:
        forge doctor recipes/gemma-2b-it.toml
        forge doctor deployments/two-chatbots.toml
    """
    from forge.errors import HostError

    found = output.here().examine(recipes, runtime=runtime)
    counts = {str(status): sum(each.status == status for each in found) for status in STATUSES}
    lines: list[str] = []
    for each in found:
        status = click.style(f"{each.status:<8}", fg=STATUSES[each.status])
        lines.append(f"{status} {each.check:<14} {each.what}")
        if each.hint and each.status != "ok":
            lines.append(f"{'':24}-> {each.hint}")
    told = ", ".join(f"{count} {status}{'s' if count != 1 and status != 'ok' else ''}" for status, count in counts.items())
    output.result({"findings": found, "counts": counts}, "\n".join((*lines, told)))
    if counts["problem"]:
        raise SystemExit(HostError.exit_code)
