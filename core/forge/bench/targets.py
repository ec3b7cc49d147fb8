"""What a benchmark's argument names: a served model, or every model of a deployment's file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from forge.build.together import Joint
from forge.schema.values import Ports, Recipe
from forge.serve.lookup import Target
from forge.serve.server_types import Running


class Shop(Protocol):
    """What finds the models that are to be measured: Forge."""

    def joint(self, recipes: Sequence[str | Path], *, deployed: bool = False) -> Joint: ...
    def read(self, path: str | Path) -> Recipe: ...
    def target(self, model: str, repository: str | Path | None = None) -> Target: ...
    def server(self, repository: str | Path) -> Running: ...


def measured(shop: Shop, what: str, repository: str | Path | None) -> tuple[list[Target], Ports]:
    """The models that ``what`` names, a served model or a deployment's file, and the ports of the server that offers them."""
    names, place = [what], repository
    if Path(what).is_file():
        joint = shop.joint([what], deployed=True)
        place = repository or joint.repository
        names = [member.name or shop.read(joint.path(member)).name for member in joint.stated.members]
    targets = [shop.target(name, place) for name in names]
    return targets, shop.server(targets[0].repository).ports
