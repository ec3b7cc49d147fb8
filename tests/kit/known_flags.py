"""The flags that NVIDIA's tools of 0.21 know: read out of their sources where those are here, or from a list of them."""

import ast
import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import PurePosixPath

import pytest

import originals

VERSION = "0.21.0"
Flags = Mapping[str, Mapping[str, object]]
_CORE = ("llama", "gemma", "qwen", "phi", "gpt", "enc_dec")
"""Families whose scripts moved to examples/models/core with 0.19."""


def known(tool: str) -> Flags:
    """Flag or alias -> what is known of it. Skips the test where neither the sources nor the list are here."""
    if rows := of_source(tool):
        return rows
    listed = originals.table_of_flags()
    if not listed:
        pytest.skip(originals.MISSING)
    tools = json.loads(listed.read_text(encoding="utf-8"))
    return {name: flag for flag in tools[tool]["flags"] for name in (flag["flag"], *flag["aliases"])}


def of_source(tool: str, version: str = VERSION) -> Flags:
    """From the tool's source; empty where that is not here."""
    name = tool.partition(":")[2]
    paths = {"quantize": "examples/quantization/quantize.py", "trtllm-build": "tensorrt_llm/commands/build.py"}
    path = paths.get(tool, f"examples/{'models/core/' if name in _CORE else ''}{name}/convert_checkpoint.py")
    if tool == "trtllm-build:plugins":
        path = "tensorrt_llm/plugin/plugin.py"
    file = originals.source(version, path)
    if file is None:
        return {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return plugins(tree) if name == "plugins" else flags(tree)


def flags(tree: ast.Module) -> Flags:
    """What a script hands to argparse, as far as it stands there in plain words: choices that are computed are left out."""
    found: dict[str, Mapping[str, object]] = {}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            names = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            row = {word.arg: _plain(word.value) for word in call.keywords if word.arg and _plain(word.value) is not None}
            found |= dict.fromkeys(names, row)
    return found


def plugins(tree: ast.Module) -> Flags:
    """The fields of PluginConfig that trtllm-build has flags for."""
    (exposed,) = (each.value for each in tree.body if isinstance(each, ast.Assign) and _named(each) == "cli_plugin_args")
    shown: object = ast.literal_eval(exposed)
    assert isinstance(shown, list)
    return {
        f"--{name}": {"choices": ["enable", "disable"]} if kind == "bool" else {}
        for name, kind in _fields(tree)
        if name in shown
    }


def _fields(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for each in ast.walk(tree):
        if isinstance(each, ast.ClassDef) and each.name == "PluginConfig":
            for field in each.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.target.id.lstrip("_"), ast.unparse(field.annotation)


def _named(assigned: ast.Assign) -> str:
    return assigned.targets[0].id if isinstance(assigned.targets[0], ast.Name) else ""


def _plain(value: ast.expr) -> object:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


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
