"""The pages of the documentation: every link to a file leads somewhere, and the README's verbs are the ones there are."""

import re
from pathlib import Path

import pytest

from cli_verbs import commands

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_file_of_the_project_that_is_named_is_there(page: Path) -> None:
    named = re.findall(
        r"(?<![\w/.-])((?:core|docs|tests|benchmarks|examples|deployments|plugins)/[\w/.-]+\.\w+)",
        page.read_text(encoding="utf-8"),
    )
    made_up = {"tests/test_internlm.py"}  # files of the plugin that a page makes from nothing
    assert [name for name in named if name not in made_up and not (ROOT / name).exists()] == []


def test_a_named_recipe_exists_or_is_the_pages_own() -> None:
    own = {"recipes/my-gemma.toml", "recipes/internlm2-chat-1.8b.toml"}
    named = {
        name for page in PAGES for name in re.findall(r"(?<![\w./])recipes/[\w.-]+\.toml\b", page.read_text(encoding="utf-8"))
    }
    assert [name for name in sorted(named - own) if not (ROOT / name).exists()] == []


def test_the_readmes_table_has_every_verb() -> None:
    table = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {verb for row in table for verb in re.findall(r"`([\w-]+)`", row)} == set(commands())


def test_the_readmes_first_commands_are_those_of_the_makefile() -> None:
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}" in (ROOT / "README.md").read_text(encoding="utf-8")
        assert re.search(rf"^{target}:", made, re.MULTILINE)
