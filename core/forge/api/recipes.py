"""The part of Forge that looks at one recipe: reading, resolving, pinning and writing it; nothing is built."""

from pathlib import Path

from forge.build.resolve import Resolver
from forge.plan.resolved import Resolved
from forge.recipe import shipped
from forge.recipe.shipped import located
from forge.schema.values import Recipe, RuntimeKind

AnyPath = str | Path


class Recipes:
    """What one recipe says, and what stands behind it."""

    _resolver: Resolver

    def read(self, path: AnyPath, runtime: RuntimeKind | None = None) -> Recipe:
        """The recipe at ``path``; RecipeError carries everything that is wrong with it."""
        return self._resolver.read(Path(located(path)), runtime)

    def resolve(self, path: AnyPath, *, runtime: RuntimeKind | None = None, locked: bool = False) -> Resolved:
        """A recipe with its facts and its plugins, ready to be planned."""
        return self._resolver.resolve(Path(located(path)), runtime=runtime, locked=locked)

    def lock(self, path: AnyPath, *, upgrade: bool = False) -> tuple[Path, bool]:
        """Write ``<recipe>.lock``; what a valid one pins stays unless ``upgrade``. Says whether the file changed."""
        return self._resolver.lock(Path(located(path)), upgrade=upgrade)

    def dockerfile(self, path: AnyPath) -> str:
        """What a build would make the recipe's image from; the base as the recipe names it, where it is not here."""
        return self._resolver.dockerfile(Path(located(path)))

    def draft(self, source: str, name: str | None = None, revision: str = "main", base: AnyPath = ".") -> str:
        """The text of a recipe for a checkpoint: a hub id, a git URL, or a folder or .gguf file seen from here.

        Paths in the recipe are relative to ``base``, the folder that it will stand in.
        """
        return self._resolver.draft(source, name, revision, Path(base))

    def example(self, name: str) -> str:
        """The text of a recipe that forge ships; SourceError with all their names where it ships none of this one."""
        return shipped.text(name)
