"""A build as it goes on: bars on a tty, plain lines otherwise."""

import sys

import click

from forge.cli.show import size
from forge.ports import Event, Listener


def lines() -> Listener:
    """One line per thing that happened; nothing per chunk of bytes."""

    def show(event: Event) -> None:
        if text := _line(event):
            click.echo(text, err=True)

    return show


def _line(event: Event) -> str:
    match event.kind:
        case "held":
            return f"held  {event.step}  {size(event.size)}"
        case "start":
            return f"...   {event.step}"
        case "made":
            what = f"  {size(event.size)}" if event.size else ""
            return f"made  {event.step}  {event.seconds:.1f} s{what}"
        case "note":
            return f"note  {event.step}: {event.text}"
        case _:
            return ""


def bars() -> Listener:
    """A rich progress display: one bar for the step under way, its last log line beside it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[line]}"),
        console=console,
        transient=True,
    )
    tasks: dict[str, int] = {}

    def show(event: Event) -> None:
        if event.kind == "start":
            progress.start()
            tasks[event.step] = progress.add_task(event.step, total=event.total or None, line="")
        elif event.kind == "progress" and event.step in tasks:
            progress.update(tasks[event.step], completed=event.done, total=event.total)  # type: ignore[arg-type]
        elif event.kind == "log" and event.step in tasks:
            progress.update(tasks[event.step], line=event.text[-60:])  # type: ignore[arg-type]
        elif text := _line(event):
            if event.step in tasks and event.kind in ("made", "held"):
                progress.remove_task(tasks.pop(event.step))  # type: ignore[arg-type]
            console.print(text, highlight=False, markup=False)
            if not tasks:
                progress.stop()

    return show
