"""docs/twin.md says what the twin is: its architectures, its Pythons and platforms, and what it refuses."""

from pathlib import Path

from forge.schema.twin_environment import PACKAGES, PLATFORMS, PYTHONS, TRITON
from forge.twin.architectures import ARCHITECTURES, ROTARIES

PAGE = (Path(__file__).parents[2] / "docs" / "twin.md").read_text(encoding="utf-8")


def test_every_architecture_and_rotary_embedding_that_it_decodes_is_named() -> None:
    decodes = PAGE.partition("## What it decodes")[2].partition("## ")[0]
    assert [name for name in (*ARCHITECTURES, *ROTARIES) if f"`{name}`" not in decodes] == []
    assert decodes.count("For") >= len(ARCHITECTURES)


def test_what_it_is_served_with_is_named() -> None:
    served = PAGE.partition("## What it is served with")[2].partition("## ")[0]
    for version in PYTHONS:
        assert version in served
    for platform in PLATFORMS:
        assert platform.removeprefix("linux-") in served
    for package in (*PACKAGES, TRITON):
        name = package.partition("==")[0]
        assert name in served or name == "markupsafe"  # jinja2's own
