"""Figures and tables as text, the same in every verb."""

import re
from collections.abc import Sequence

_HIDDEN = re.compile("\x1b(?!\\[[0-9;]*m)|\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What moves a terminal's cursor, asks it for something, or turns a line around. Colours are let be."""


def shown(text: str) -> str:
    """``text`` for a terminal: what strangers have put into names, errors and answers is seen, and does nothing."""
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


def size(count: int | None) -> str:
    """Bytes for people: 98.4 MB."""
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Left-aligned columns, the first row being the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def age(seconds: float | None) -> str:
    """A time that has passed, in its two largest units: 3 d 4 h."""
    if seconds is None:
        return "-"
    left, parts = int(seconds), list[str]()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        parts += [f"{count} {unit}"] if count or (unit == "s" and not parts) else []
    return " ".join(parts[:2])


def date(at: float) -> str:
    """A time in seconds since 1970, in UTC: 2026-11-28 06:30."""
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
