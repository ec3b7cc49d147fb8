"""The flags that NVIDIA's tools know, as read from their sources; the list stands beside the repository."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath

import pytest

FILE = Path(__file__).parent.parent.parent / "shared" / "data" / "flags-0.21.json"
Flags = Mapping[str, Mapping[str, object]]


def known(tool: str) -> Flags:
    """Flag or alias -> what is known of it. Skips the test where the list is not here."""
    if not FILE.is_file():
        pytest.skip("the list of NVIDIA's flags stands beside the repository, and is not here")
    tools = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: flag for flag in tools[tool]["flags"] for name in (flag["flag"], *flag["aliases"])}


def of_command(argv: tuple[str, ...]) -> Flags:
    """What is known of a command's tool."""
    if argv[0] == "trtllm-build":
        return {**known("trtllm-build"), **known("trtllm-build:plugins")}
    script = PurePosixPath(argv[1])
    return known("quantize" if script.name == "quantize.py" else f"convert_checkpoint:{script.parent.name}")


def strange(argv: tuple[str, ...]) -> list[str]:
    """The words of a command that its tool would refuse: flags it has not, values that are none of its choices."""
    flags = of_command(argv)
    named = [word for word in argv if word.startswith("--") and word.partition("=")[0] not in flags]
    pairs = pairwise(argv)
    return named + [f"{name} {value}" for name, value in pairs if not _choosable(flags.get(name, {}), value)]


def _choosable(flag: Mapping[str, object], value: str) -> bool:
    choices = flag.get("choices")
    return not isinstance(choices, list) or value in choices
