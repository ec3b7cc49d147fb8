"""What no linter counts: no file above 400 lines, no function above 40."""

import ast
import sys
from pathlib import Path

FILE, FUNCTION = 400, 40


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


def main() -> int:
    problems: list[str] = []
    for top in ("core", "plugins"):
        for file in sorted(Path(top).rglob("*.py")):
            count = len(file.read_text(encoding="utf-8").splitlines())
            if count > FILE:
                problems.append(f"{file}: {count} lines; at most {FILE}")
            problems += long_functions(file)
    sys.stdout.write("".join(f"{problem}\n" for problem in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
