"""Reads the world once, before planning: the source's commit and config.json, the host, the toolchain."""

from collections.abc import Iterator
from pathlib import Path

from forge.build.outside import Outside
from forge.build.sources.git_commands import redacted
from forge.errors import Problem, RecipeError
from forge.plan import families
from forge.plan.lock import Lock, placed
from forge.schema.adapters import Adapter
from forge.schema.spelling import opens
from forge.schema.values import Checkpoint, Facts, Pinned, Recipe, RuntimeKind, Source, SourceKind, Toolchain
from forge.schema.vllm_images import vllm_release, vllm_toolchain
from forge.trtllm import image_table


def gather(recipe: Recipe, base: Path, outside: Outside, lock: Lock | None = None) -> Facts:
    """All facts for ``recipe``; ``base`` is the folder its relative paths stand on, ``lock`` what it is pinned to."""
    source = _pin(recipe.source, base, outside, lock.source if lock else None)
    draft = _pin(recipe.draft, base, outside, lock.draft if lock else None) if recipe.draft else None
    # Only an engine's conversion looks at texts; a recipe that is served otherwise for once leaves them where they are.
    texts = recipe.convert.calibration if recipe.runtime.kind is RuntimeKind.ENGINE else None
    return Facts(
        source=source,
        checkpoint=outside.origins[recipe.source.kind].read(source),
        host=outside.host(),
        toolchain=image(recipe),
        draft=draft,
        draft_checkpoint=outside.origins[draft.kind].read(draft) if draft else Checkpoint(),
        calibration=_pin(texts, base, outside, lock.calibration if lock else None) if texts else None,
    )


def sources(recipe: Recipe) -> Iterator[Source]:
    """All that a recipe is made of."""
    yield from (source for source in (recipe.source, recipe.draft, recipe.convert.calibration) if source is not None)
    yield from recipe.lora


def opened(recipe: Recipe) -> list[str]:
    """The addresses of sources that hold a password or a token, without it: no recipe with one may go elsewhere."""
    return [redacted(source.git) for source in sources(recipe) if source.git and opens(source.git)]


def adapters(recipe: Recipe, base: Path, outside: Outside, lock: Lock | None = None) -> tuple[Adapter, ...]:
    """The recipe's adapters, with what their configs and headers say."""
    found: list[Adapter] = []
    for at, each in enumerate(recipe.lora):
        origin = outside.origins[each.kind]
        pinned = _pin(each, base, outside, lock.lora[at] if lock else None, f"lora.{each.name}")
        found.append(Adapter(each.name, pinned, origin.read(pinned).config, origin.tensors(pinned), each.rank))
    return tuple(found)


def image(recipe: Recipe) -> Toolchain:
    """What is known of the recipe's image before anyone has looked inside it; RecipeError for a tag that no table has.

    One that is served without an image may state a tag of either table.
    """
    runtime = recipe.runtime
    vllm = image_table.release(runtime.image) is None and vllm_release(runtime.image) is not None
    if runtime.kind is RuntimeKind.VLLM if runtime.contained else vllm:
        return vllm_toolchain(runtime.image)
    return image_table.toolchain(runtime.image, runtime.trtllm or "")


def unknown(recipe: Recipe, plugins: families.Points) -> tuple[Problem, ...]:
    """Names in it that nothing here has: told without asking anybody."""
    found = families.unknown(recipe, plugins)
    try:
        image(recipe)
    except RecipeError as error:
        return (*found, *error.problems)
    return found


def _pin(source: Source, base: Path, outside: Outside, locked: Pinned | None, where: str = "source") -> Pinned:
    """The locked pin for what a commit or a version nails down; local files are looked at each time, for they are the truth."""
    origin = outside.origins[source.kind]
    if locked and source.kind in (SourceKind.HUB, SourceKind.GIT, SourceKind.WHEEL):
        return locked
    pinned = origin.pin(source, base)
    if locked and placed(pinned, "") != placed(locked, ""):
        problem = "these files are not the ones that the lock pins"
        raise RecipeError((Problem(f"{where}.{source.kind}", problem, "move the lock with `forge lock RECIPE`"),))
    return pinned
