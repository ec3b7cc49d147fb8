"""docs/architecture.md has every floor and package of the import contract, each with what its own docstring says first.

FORGE_REWRITE_DOCS=1 writes it anew: `FORGE_REWRITE_DOCS=1 pytest tests/docs/test_docs_architecture.py`, then read the diff.
"""

import ast
import os
import re
from pathlib import Path

import tomli

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "forge"
PAGE = ROOT / "docs" / "architecture.md"
REWRITE = "FORGE_REWRITE_DOCS"
CONTRACTS = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
FLOORS: list[list[str]] = [
    [name.strip() for name in floor.replace(":", "|").split("|")]
    for contract in CONTRACTS
    if contract["type"] == "layers"
    for floor in contract["layers"]
]
HEAD = """# The house

A package for each thing that a user of Triton or TensorRT-LLM can name, on eight floors. A package imports from the floors
below its own: never from above, never from its neighbours, and no two files import each other.

`forge build` goes one way. `cli` parses, `api` wires. `build` resolves what recipes stand on (commit, config.json, image, host)
and asks the plugins; `plan` makes steps of the answers, and each step's key is a hash over all that it stands on. `build` makes
what the `store` does not hold, `repository` swaps the entry in, `check` looks at it, `serve` starts Triton on it, `client`
asks.

| to find | look in |
|---|---|
| what starts Triton | `serve/process.py`, `serve/container.py`; its options: `serve/arguments.py` |
| where a key is made | `plan/steps.py` |
| how config.pbtxt is filled | `repository/config.py`, from `repository/skeletons/` |
| where a recipe is checked | `recipe/validate.py` (types), `recipe/rules.py` (contradictions); its tables: `schema/recipe.py` |
| where Docker is spoken to | `machine/docker/`, and `serve/container.py` for a server's own container |
| where plugins are asked | `plan/families.py`; what they are asked: `hookspecs.py` |
| where adapters are chosen | `api/wiring.py` |

A plugin (`plugins/forge_<family>`, or a stranger's) imports `forge` and `forge.trtllm`, and nothing else. Contracts in
`pyproject.toml` name packages whole, so that a new file is under them from its first line: besides the floors they say that the
core knows no family, that families do not know each other, that `schema`, `recipe`, `trtllm`, `plan`, `fit`, the rules of
`check` and the `twin` start no program and know no SDK, that each SDK has one home, and that the twin runs without forge.

## Packages by floor

Written by a test from the contract and the packages' docstrings.

| floor | in `core/forge` | what it is |
|---|---|---|
"""
TAIL = """
## Where else

| folder | what |
|---|---|
| `plugins/` | families and variants, each built as a stranger's plugin would be ([writing a family](writing-a-family.md)) |
| `recipes/`, `deployments/`, `examples/` | to begin with |
| `Dockerfiles/` | a family's own Dockerfile, where its packages alone do not do |
| `tests/`, `tests/kit/` | tests by package; what they share: fakes, a real Triton, the stand-in for NVIDIA's image |
| `benchmarks/` | what forge itself costs ([what was measured](benchmarks.md)) |
| `docs/decisions/` | where the design turned out wrong, and what stands instead |
"""


def says(name: str) -> str:
    """The first sentence of the docstring of a package or file."""
    file = CORE / name / "__init__.py" if (CORE / name).is_dir() else CORE / f"{name}.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".")
    return first.replace("``", "`").replace("|", "\\|")


def row(floor: int, name: str) -> str:
    return f"| {floor} | `{name}` | {says(name)} |\n"


def test_the_page_is_the_contract() -> None:
    height = len(FLOORS)
    assert height == 8
    rows = "".join(row(height - depth, name) for depth, names in enumerate(FLOORS) for name in names)
    page = HEAD + rows + TAIL
    if os.environ.get(REWRITE) == "1":
        PAGE.write_text(page, encoding="utf-8")
    told = PAGE.read_text(encoding="utf-8")
    assert told == page, f"{REWRITE}=1 pytest tests/docs/test_docs_architecture.py writes docs/architecture.md anew"


def test_every_package_says_what_it_is() -> None:
    assert [name for names in FLOORS for name in names if len(says(name)) < 15] == []


def test_the_packages_and_folders_that_the_text_names_are_there() -> None:
    told = PAGE.read_text(encoding="utf-8")
    names = {name for floor in FLOORS for name in floor}
    prose = told.partition("## Packages by floor")[0]
    assert set(re.findall(r"`([a-z]+)`", prose)) <= names | {"forge"}
    files = re.findall(r"`([a-z_]+/(?:[a-z_]+/)*(?:[a-z_]+\.py)?|[a-z]+\.py)`", prose)
    assert len(files) > 10
    assert [file for file in files if not (CORE / file).exists()] == []
    folders = [word for cell in re.findall(r"^\| (`.+?/`.*?) \|", told, re.MULTILINE) for word in re.findall(r"`(.+?)/`", cell)]
    assert len(folders) > 6
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
