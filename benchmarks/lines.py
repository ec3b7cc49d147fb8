"""Lines of code of each package: without blank lines, comments and docstrings.

python benchmarks/lines.py [FOLDER ...]     by default core and plugins
"""

import ast
import sys
import tokenize
from collections import Counter
from pathlib import Path

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code(file: Path) -> int:
    """Lines of ``file`` on which some code stands; a string that stands for itself, as a docstring does, is none."""
    with file.open("rb") as stream:
        tokens = tokenize.tokenize(stream.readline)
        lines = {line for each in tokens if each.type not in _NO_CODE for line in range(each.start[0], each.end[0] + 1)}
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main(folders: list[Path]) -> None:
    for folder in folders:
        counted = Counter[str]()
        for file in sorted(folder.rglob("*.py")):
            inner = file.relative_to(folder).parts
            counted["/".join(inner[: min(2, len(inner) - 1)]) or "."] += code(file)
        for package, lines in sorted(counted.items()):
            print(f"{lines:7,}  {folder / package}")
        print(f"{counted.total():7,}  {folder} in all\n")


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:] or ("core", "plugins")])
