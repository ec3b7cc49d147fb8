"""docs/recipe.md lists every key of a recipe with what is allowed and its default, and its examples are recipes."""

import re
from pathlib import Path

import pytest

from forge.recipe.reader import read
from recipe_keys import Key, keys

PAGE = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text(encoding="utf-8")
ROWS = {row[0]: row[1:] for row in re.findall(r"^\| `([^`]+)` \| (.*?) \| (.*?) ?\| (.+?) \|$", PAGE, re.MULTILINE)}
EXAMPLES = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_key_is_listed_and_no_other() -> None:
    assert list(ROWS) == sorted((key.path for key in keys()), key=list(ROWS).index)
    assert len(ROWS) == len(keys())


@pytest.mark.parametrize("key", keys(), ids=lambda key: key.path)
def test_a_keys_row_says_what_is_allowed_and_its_default(key: Key) -> None:
    allowed, default, meaning = ROWS[key.path]
    assert allowed == key.allowed
    assert default.strip() == (f"`{key.default}`" if key.default else "")
    assert len(meaning) > 10


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_is_a_recipe(text: str) -> None:
    name = "" if text.startswith("name") else 'name = "m"\n'
    source = "" if "[source]" in text else '\n[source]\nhub = "a/b"\n'
    assert read(f"{name}{text}{source}", "docs/recipe.md").name
