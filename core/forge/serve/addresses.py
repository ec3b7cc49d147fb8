"""Which models ask their own server at a fixed address: TensorRT-LLM 1.2's bls asks gRPC at localhost:8001."""

import ast
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

PORT = 8001
FIXED = f"localhost:{PORT}"
"""NVIDIA's bls keeps it in an attribute (``self.model_config_api_baseurl``) and hands that to ``load_model_configs``."""


class Asking(Enum):
    """Whether a model's code asks there: for every request, on a condition or in a way that cannot be read, or not at all."""

    ALWAYS = "always"
    SOMETIMES = "sometimes"
    NEVER = "never"


def asking(folder: Path) -> Asking:
    """What the Python files in a model's version folders say."""
    files = sorted(folder.glob("*/**/*.py"))
    texts = [text for text in (file.read_text(encoding="utf-8", errors="replace") for file in files) if FIXED in text]
    if any(_always(text) for text in texts):
        return Asking.ALWAYS
    return Asking.SOMETIMES if texts else Asking.NEVER


def _always(text: str) -> bool:
    """Whether ``execute`` hands the address on outside of any condition but its own ``try``."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return False
    holders = {
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and str(node.value.value).startswith(FIXED)
        for target in node.targets
    }
    executes = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "execute")
    return any(_hands_on(call, holders) for each in executes for call in _calls(each.body))


def _calls(body: list[ast.stmt]) -> Iterator[ast.Call]:
    """The calls of statements that run whatever the request says."""
    for statement in body:
        if isinstance(statement, ast.Try):
            yield from _calls(statement.body)
        elif isinstance(statement, ast.Expr | ast.Assign):
            yield from (node for node in ast.walk(statement) if isinstance(node, ast.Call))


def _hands_on(call: ast.Call, holders: set[str]) -> bool:
    given = (*call.args, *(keyword.value for keyword in call.keywords))
    return any(ast.unparse(value) in holders for value in given)
