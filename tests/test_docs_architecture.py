"""docs/architecture.md has every floor and room of the import contract, each with what its own docstring says first.

FORGE_REWRITE_DOCS=1 writes it anew: `FORGE_REWRITE_DOCS=1 pytest tests/test_docs_architecture.py`, then read the diff.
"""

import ast
import os
import re
from pathlib import Path

import tomli

ROOT = Path(__file__).parent.parent
CORE = ROOT / "core" / "forge"
PAGE = ROOT / "docs" / "architecture.md"
REWRITE = "FORGE_REWRITE_DOCS"
CONTRACTS = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
FLOORS: list[list[str]] = [
    [room.strip() for room in floor.split("|")]
    for contract in CONTRACTS
    if contract["type"] == "layers"
    for floor in contract["layers"]
]
HEAD = """# The house

One noun, one room; imports point down; values cross doors; effects stand behind ports; the plan is pure.

`forge build` goes down the floors and up again. `cli` parses, `workshop` wires. `joining` and `intake` read recipes and gather
what planning may know of each (`facts`: commit, config.json, image, host). `plan` asks the plugins through `families` and has
`lowering` make steps of the answers; each step's key is a hash over all that it stands on. `builder` makes what the `store`
does not hold, through `ports` that `doors` fills with `adapters`. `publishing` swaps the entry into the repository, and
`checking` looks at it.

A plugin (`plugins/forge_<family>`, or a stranger's) imports `forge` and `forge.trtllm`, and nothing else. Besides the floors,
contracts in `pyproject.toml` say that the core knows no family, that families do not know each other, that planning touches
nothing, that SDKs are imported in `adapters` only and click in `cli` only, and that the twin runs without forge.

## Rooms by floor

A room imports from the floors below its own, never from its own floor or above. Written by a test from the contract and the
rooms' docstrings.

| floor | room in `core/forge` | what it is |
|---|---|---|
"""
TAIL = """
## Where else

| folder | what |
|---|---|
| `plugins/` | families and variants, each built as a stranger's plugin would be ([writing a family](writing-a-family.md)) |
| `recipes/`, `deployments/`, `examples/` | to begin with |
| `Dockerfiles/` | a family's own Dockerfile, where its packages alone do not do |
| `tests/`, `tests/standin/` | fakes and a real Triton; the stand-in for NVIDIA's image |
| `benchmarks/` | what forge itself costs ([what was measured](benchmarks.md)) |
| `docs/decisions/` | where the design turned out wrong, and what stands instead |
"""


def says(room: str) -> str:
    """The first sentence of a room's docstring."""
    file = CORE / room / "__init__.py" if (CORE / room).is_dir() else CORE / f"{room}.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".")
    return first.replace("``", "`").replace("|", "\\|")


def row(floor: int, room: str) -> str:
    return f"| {floor} | `{room}` | {says(room)} |\n"


def test_the_page_is_the_contract() -> None:
    height = len(FLOORS)
    rows = "".join(row(height - depth, room) for depth, rooms in enumerate(FLOORS) for room in rooms)
    page = HEAD + rows + TAIL
    if os.environ.get(REWRITE) == "1":
        PAGE.write_text(page, encoding="utf-8")
    told = PAGE.read_text(encoding="utf-8")
    assert told == page, f"{REWRITE}=1 pytest tests/test_docs_architecture.py writes docs/architecture.md anew"


def test_every_room_says_what_it_is() -> None:
    assert [room for rooms in FLOORS for room in rooms if len(says(room)) < 15] == []


def test_the_rooms_and_folders_that_the_text_names_are_there() -> None:
    told = PAGE.read_text(encoding="utf-8")
    rooms = {room for floor in FLOORS for room in floor}
    prose = told.partition("## Rooms by floor")[0]
    assert set(re.findall(r"`([a-z]+)`", prose)) <= rooms | {"forge"}
    folders = [word for cell in re.findall(r"^\| (`.+?/`.*?) \|", told, re.MULTILINE) for word in re.findall(r"`(.+?)/`", cell)]
    assert len(folders) > 6
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
