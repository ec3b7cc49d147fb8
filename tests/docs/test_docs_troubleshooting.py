"""docs/troubleshooting.md quotes what forge really says: every quoted message stands in the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CODE = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "core" / "forge").rglob("*.py")))


def test_every_message_that_is_quoted_is_one_of_forges() -> None:
    rows = re.findall(r"^\| (.*?) \|", PAGE.partition("|---|")[2], re.MULTILINE)
    pieces = [piece.strip() for row in rows for text in re.findall(r"`([^`]+)`", row) for piece in text.split("...")]
    said = [piece for piece in pieces if len(piece.split()) > 1]
    assert len(said) > 12
    assert [piece for piece in said if piece not in CODE] == []
