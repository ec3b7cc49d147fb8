"""The security page: each test that it names as the one that holds a promise is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [
    line.strip("|").split("|")
    for line in (ROOT / "docs" / "security.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and "`test" in line
]
TESTS = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "tests").glob("*/test_*.py")))


def test_each_promise_names_a_test_that_is_there() -> None:
    assert len(ROWS) > 20
    for promise, holding in ROWS:
        named = re.findall(r"`([^`]+)`", holding)
        assert named, promise
        for name in named:
            there = (ROOT / name).is_file() if name.endswith(".py") else f"def {name}(" in TESTS
            assert there, f"{promise.strip()}: there is no {name}"


def test_no_promise_is_without_a_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for table in re.findall(r"^\| promise \|.*?(?:\n\n|\Z)", page, re.MULTILINE | re.DOTALL):
        assert [row for row in table.splitlines()[2:] if row.startswith("|") and "`test" not in row] == []
