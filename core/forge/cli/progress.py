"""A build as it goes on, in plain lines."""

import click

from forge.cli.text import size
from forge.events import Event


def tell(event: Event) -> None:
    """A listener with one line per thing that happened; nothing per chunk of bytes."""
    if event.kind == "start":
        click.echo(f"...   {event.step}", err=True)
    elif text := sentence(event):
        click.echo(text, err=True)


def sentence(event: Event) -> str:
    """What is worth a line that stays; empty for what only passes by."""
    match event.kind:
        case "held" | "sent":
            return f"{event.kind}  {event.step}  {size(event.size)}"
        case "made" | "taken":
            what = f"  {size(event.size)}" if event.size else ""
            return f"{event.kind:<4}  {event.step}  {event.seconds:.1f} s{what}"
        case "failed":
            return f"FAILED {event.step}" + (f": {event.text}" if event.text else "")
        case "note":
            return f"note  {event.step}: {event.text}"
        case _:
            return ""
