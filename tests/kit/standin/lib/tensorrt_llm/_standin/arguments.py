"""The command lines of TensorRT-LLM 0.21's tools, from the table in flags.json.

A row says how a flag differs from a plain string that is None when it is absent: ``also`` (aliases), ``type`` (``int``,
``float``, ``path``; ``enum``: CheckpointType; ``on`` and ``off`` take no value), ``default``, ``choices``, ``nargs``,
``const``, ``required``, ``dest``; ``unset`` keeps an absent flag out of the result.
"""

import argparse
import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import cast

_TYPES: dict[str, Callable[[str], object]] = {"int": int, "float": float, "path": Path, "str": str}
Row = dict[str, object]


class CheckpointType(str, Enum):  # noqa: UP042  # as the original: a StrEnum is shown by its values, this by its members' names
    """What Gemma's script calls the kinds of checkpoint."""

    JAX = "jax"
    KERAS = "keras"
    TORCH = "torch"
    HF = "hf"


def table() -> dict[str, dict[str, Row]]:
    """Tool -> flag -> row."""
    text = (Path(__file__).parent / "flags.json").read_text(encoding="utf-8")
    return cast("dict[str, dict[str, Row]]", json.loads(text))


def parser(*tools: str, prog: str | None = None) -> argparse.ArgumentParser:
    """argparse for one tool, or for a tool and the flags that it takes over."""
    made = argparse.ArgumentParser(prog=prog, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for tool in tools:
        for flag, row in table()[tool].items():
            _add(made, flag, row)
    return made


def _add(made: argparse.ArgumentParser, flag: str, row: Row) -> None:
    names = (flag, *cast("list[str]", row.get("also", [])))
    kind = cast("str", row.get("type", "str"))
    plain = flag.strip("-").replace("-", "_")
    dest = cast("str", row.get("dest", plain))
    told = plain.replace("_", " ")
    if kind in {"on", "off"}:
        made.add_argument(*names, dest=dest, action="store_true" if kind == "on" else "store_false", help=told)
        return
    choices = cast("list[str] | None", row.get("choices"))
    if kind == "enum":  # as Gemma's script has it: its help shows CheckpointType.hf, and hf is what it takes
        made.add_argument(*names, dest=dest, type=CheckpointType, choices=list(CheckpointType), help=told)
        return
    made.add_argument(
        *names,
        dest=dest,
        type=_TYPES[kind],
        default=argparse.SUPPRESS if row.get("unset") else row.get("default"),
        choices=choices,
        nargs=cast("str | None", row.get("nargs")),
        const=row.get("const"),
        required=bool(row.get("required")),
        help=told,
    )
