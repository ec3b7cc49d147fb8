"""One recipe with all that planning may know of it."""

from dataclasses import dataclass

from forge.families import Family
from forge.model import Facts, Recipe


@dataclass(frozen=True)
class Order:
    """A recipe, the plugins that answer for it, and the facts they are asked with."""

    recipe: Recipe
    family: Family
    facts: Facts
