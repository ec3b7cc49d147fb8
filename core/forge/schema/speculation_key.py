"""What a variant declares of the keys that it reads in a recipe's [speculation]."""

import re
from typing import Literal, get_args

from msgspec import Struct

from forge.schema.recipe import Scalar, SpeculationTable
from forge.schema.spelling import FlagName

_FLAG = str(get_args(FlagName)[1].pattern)


class SpeculationKey(Struct, frozen=True):
    """A key that a variant reads. Where [speculation] has one of that name, it is that one, of the kind that docs/recipe.md
    says; any other stands in [speculation.args], and holds a value of ``kind``."""

    name: str
    kind: Literal["int", "float", "bool", "text"] = "int"

    @property
    def common(self) -> bool:
        """Whether [speculation] itself has it."""
        return self.name != "args" and self.name in SpeculationTable.__struct_fields__

    @property
    def writable(self) -> bool:
        """Whether a recipe can state it."""
        return self.common or (self.name != "args" and bool(re.fullmatch(_FLAG, self.name)))

    def takes(self, value: Scalar) -> bool:
        """Whether a value is of its kind; a whole number is a number, too."""
        kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "text": (str,)}
        return type(value) in kinds[self.kind]
