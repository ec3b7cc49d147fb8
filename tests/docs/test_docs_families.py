"""docs/families.md says what the plugins say: architectures, what a variant reads, its defaults, a recipe for each."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import shipped
from forge.plan import families
from forge.plan.families import Family, load
from forge.recipe.rules import DRAFTED, SPECULATIVE
from forge.schema.values import Checkpoint, Recipe
from forge.trtllm.image_table import toolchain

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "families.md").read_text(encoding="utf-8")
INSTALLED = {info.name: info.kind for info in families.installed() if info.distribution == "triton-forge"}
LLAMA = Checkpoint({"architectures": ["LlamaForCausalLM"]})


def _rows(title: str) -> Iterator[tuple[str, ...]]:
    """The cells of a section's first table."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    _, _, body = section.partition("---|\n")
    for line in itertools.takewhile(lambda line: line.startswith("|"), body.splitlines()):
        yield tuple(cell.strip() for cell in line.strip("|").split("|"))


FAMILIES = {row[0].strip("`"): row[1:] for row in _rows("Families")}
VARIANTS = {row[0].strip("`"): row[1:] for row in _rows("Variants")}
DEFAULTS = [(name, *pair) for name, row in VARIANTS.items() for pair in re.findall(r"`(\w+)` \((\d+)\)", row[2])]


def test_every_family_and_variant_is_listed_and_no_other() -> None:
    assert dict.fromkeys(FAMILIES, "family") | dict.fromkeys(VARIANTS, "variant") == INSTALLED


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_architectures_are_those_that_it_serves(name: str) -> None:
    assert tuple(re.findall(r"`(\w+)`", FAMILIES[name][0])) == load(name).architectures


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_listed_with_what_it_reads(name: str) -> None:
    assert tuple(re.findall(r"`(\w+)`", VARIANTS[name][2])) == SPECULATIVE[name]
    assert (VARIANTS[name][1] != "none") is (name in DRAFTED)


@pytest.mark.parametrize(("variant", "key", "value"), DEFAULTS)
def test_a_default_is_what_a_recipe_gets_that_says_nothing(variant: str, key: str, value: str) -> None:
    head = {"name": "m", "source": {"hub": "a/b"}, "variant": variant}
    silent, aloud, other = (
        _answers(msgspec.convert({**head, "speculation": said}, Recipe))
        for said in ({}, {key: int(value)}, {key: int(value) + 1})
    )
    assert silent == aloud != other


def _answers(recipe: Recipe) -> object:
    family, tools = Family.of(recipe, LLAMA), toolchain("25.08")
    return (family.convert_commands(tools), family.build_commands(tools), family.config_overrides())


@pytest.mark.parametrize(("name", "row"), [*FAMILIES.items(), *VARIANTS.items()])
def test_the_recipe_that_is_named_is_one_for_it(name: str, row: tuple[str, ...]) -> None:
    (place,) = re.findall(r"\]\((\S+)\)", row[-1])
    recipe = shipped.recipe((DOCS / place).resolve())
    assert name in (recipe.family, recipe.variant)
