"""docs/diagnoses.md lists every known failure as the table has it, and its example can be used."""

import re
from pathlib import Path

from forge.diagnoses import DIAGNOSES, diagnose, read

PAGE = (Path(__file__).parents[2] / "docs" / "diagnoses.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (?!name \||---)(.+?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)
(EXAMPLE,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_row_stands_on_the_page_in_the_tables_order() -> None:
    told = [(f"[{row.name}]({row.seen})" if row.seen else row.name, row.meaning, row.fix) for row in DIAGNOSES]
    assert [row for row in ROWS if not row[0].startswith("-")] == told


def test_the_example_of_an_own_row_is_one() -> None:
    held = read(EXAMPLE)
    assert held.problems == ()
    found = diagnose("ERROR: proxy said 407", held.rows)
    assert found is not None
    assert "407" in found.meaning
