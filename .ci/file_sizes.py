"""What no linter counts: lines of files and functions, words of a test's name, files of one name that mean different things."""

import ast
import sys
from collections import defaultdict
from pathlib import Path

FILE, FUNCTION = 400, 40
WORDS = 10
"""Of a test's name, after its first."""
SAME = {
    "the verb: its command, chart, part of the API or package": "bundle check cluster export fit plan run tune verify",
    "the thing itself, as each sees it": "adapters config engine gguf gpus hub lora settings speculation tokenizer vllm",
    "what a request asks, what answers it, and how tokens are picked": "asks answer sampling",
    "how Triton sees a backend of forge's, and the process that one or the other holds": "backend process",
    "a port, and what stands behind it": "containers driver environment supply",
    "what a package asks of the world": "outside",
    "the two ends of one": "pipe",
}
"""Why -> names that files of the core may share, since they mean the same in each place."""


def long_functions(file: Path) -> list[str]:
    """Functions whose body, docstring apart, is too long; a nested one counts for itself too."""
    found: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            lines = (node.body[-1].end_lineno or 0) - body[0].lineno + 1
            if lines > FUNCTION:
                found.append(f"{file}:{node.lineno}: {node.name} has {lines} lines; at most {FUNCTION}")
    return found


def equal_names(root: Path) -> list[str]:
    """Names that stand more than once and are not allowed to, and allowed ones that stand once."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for file in sorted(root.rglob("*.py")):
        if not file.stem.startswith("__"):
            places[file.stem].append(str(file))
    allowed = {name for names in SAME.values() for name in names.split()}
    shared = {name for name, files in places.items() if len(files) > 1}
    unsaid = [
        f"{' and '.join(places[name])}: one name; say in the name what tells them apart" for name in sorted(shared - allowed)
    ]
    return unsaid + [f"{__file__}: {name} stands once, and needs no leave" for name in sorted(allowed - shared)]


def long_names(file: Path) -> list[str]:
    """Tests whose name has too many words to be read at a glance where it fails."""
    return [
        f"{file}:{node.lineno}: {node.name} has {words} words; at most {WORDS}"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        if (words := len(node.name.split("_")) - 1) > WORDS
    ]


def main() -> int:
    problems = equal_names(Path("core"))
    for top in ("core", "plugins"):
        for file in sorted(Path(top).rglob("*.py")):
            count = len(file.read_text(encoding="utf-8").splitlines())
            if count > FILE:
                problems.append(f"{file}: {count} lines; at most {FILE}")
            problems += long_functions(file)
    for file in sorted(Path("tests").rglob("test_*.py")):
        problems += long_names(file)
    sys.stdout.write("".join(f"{problem}\n" for problem in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
