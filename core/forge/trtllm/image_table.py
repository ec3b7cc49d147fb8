"""Which image holds which TensorRT-LLM, CUDA and driver, and what it can build: a table and look-ups.

The images are ``nvcr.io/nvidia/tritonserver:TAG-trtllm-python-py3``. A tag that is not in the table (images.toml) is refused
with the nearest one that is.
"""

from collections.abc import Iterable
from functools import cache

from msgspec import Struct

from forge.errors import HostError, Problem
from forge.files import texts
from forge.schema import tags
from forge.schema.tags import REGISTRY, drives, same, version
from forge.schema.values import Facts, Recipe, RuntimeKind, Since, Toolchain

SUFFIX = "-trtllm-python-py3"


class Release(Struct, frozen=True):
    """One image: its tag, TensorRT-LLM's version, the CUDA version where NVIDIA states it, and the least driver."""

    tag: str
    trtllm: str
    cuda: str = ""
    driver: str = ""

    @property
    def reference(self) -> str:
        return f"{REGISTRY}:{self.tag}{SUFFIX}"

    @property
    def bare(self) -> bool:
        """Whether it has no /app: no conversion scripts and no skeletons, which came into the image with 25.01."""
        return version(self.tag) < version("25.01")

    @property
    def kinds(self) -> tuple[RuntimeKind, ...]:
        """How a recipe can be lowered in it; the PyTorch path came with 25.05."""
        if self.bare:
            return ()
        modern = version(self.tag) >= version("25.05")
        return (RuntimeKind.ENGINE, RuntimeKind.LLMAPI) if modern else (RuntimeKind.ENGINE,)


class _Table(Struct):
    image: tuple[Release, ...]


@cache
def releases() -> tuple[Release, ...]:
    """Every image that is known to hold TensorRT-LLM's engines, oldest first (images.toml says where its figures are from)."""
    return texts.shipped("forge.trtllm", "images.toml", _Table).image


@cache
def _by_tag() -> dict[str, Release]:
    return {each.tag: each for each in releases()}


def release(image: str) -> Release | None:
    """The table's row for a tag or for a whole reference to NVIDIA's image; None where the table cannot know it."""
    return _by_tag().get(tags.tag(image, SUFFIX))


def toolchain(image: str, stated: str = "") -> Toolchain:
    """What is known of a recipe's ``runtime.image`` before anyone has looked inside it.

    A digest or a reference to somebody's own image says nothing of its version: ``trtllm`` is what the recipe has
    ``stated``, or empty until the image is asked. A tag that the table lacks is a RecipeError.
    """
    known = release(image)
    if known is not None:
        return Toolchain(known.reference, known.trtllm, examples(known.trtllm))
    if reference := tags.whole(image):
        return Toolchain(reference, stated, examples(stated))
    raise tags.unknown(image, SUFFIX, tuple(_by_tag()))


def examples(trtllm: str) -> str:
    """The folder that holds one folder of scripts per model family; the layout changed with 0.19."""
    return "/app/examples" if trtllm and version(trtllm) < (0, 19) else "/app/examples/models/core"


def check(recipe: Recipe, toolchain: Toolchain) -> tuple[Problem, ...]:
    """Whether the recipe's image can build what its runtime asks, and is what the recipe says of it."""
    known, stated = release(recipe.runtime.image), recipe.runtime.trtllm
    if not recipe.runtime.kind.contained:
        return ()
    if stated and toolchain.trtllm and not same(stated, toolchain.trtllm):
        what = f"is {stated!r}, and {toolchain.image} holds TensorRT-LLM {toolchain.trtllm}"
        return (Problem("runtime.trtllm", what, "take it away: the image says its own version"),)
    if known is None:
        return _unversioned(toolchain) if recipe.runtime.kind is RuntimeKind.ENGINE else ()
    if toolchain.image != known.reference or recipe.runtime.kind in known.kinds:  # somewhere else than in that image, or able
        return ()
    able = ", ".join(each.tag for each in releases() if recipe.runtime.kind in each.kinds)
    what = f"{known.tag} (TensorRT-LLM {known.trtllm}) cannot serve the {recipe.runtime.kind} runtime"
    if known.bare:
        what += ": it holds no /app, so neither conversion scripts nor skeletons"
    return (Problem("runtime.image", what, f"images that can: {able}"),)


def check_since(recipe: Recipe, facts: Facts, rows: Iterable[Since]) -> tuple[Problem, ...]:
    """Whether the image's TensorRT-LLM has the checkpoint's architecture already; silent where nobody knows its version."""
    kind, trtllm = recipe.runtime.kind, facts.toolchain.trtllm
    if not kind.contained or not trtllm:
        return ()
    row = next((row for row in rows if row.architecture in facts.checkpoint.architectures), None)
    needed = row and (row.engine if kind is RuntimeKind.ENGINE else row.llmapi)
    if row is None or not needed or version(trtllm) >= version(needed):
        return ()
    able = [each.tag for each in releases() if kind in each.kinds and version(each.trtllm) >= version(needed)]
    hint = f"take an image from {able[0]!r} on" if able else f"take an image with TensorRT-LLM {needed} or later"
    if kind is RuntimeKind.ENGINE and row.llmapi and version(trtllm) >= version(row.llmapi):
        hint += '; or say runtime.kind = "llmapi", which this image can'
    what = f"TensorRT-LLM {trtllm} has no {kind} path for {row.architecture}: it came with {needed}"
    return (Problem("runtime.image", what, hint),)


def _unversioned(toolchain: Toolchain) -> tuple[Problem, ...]:
    """An image that was looked at and does not say what it holds: what cannot be known is not guessed."""
    if toolchain.trtllm or not toolchain.identity:
        return ()
    what = f"{toolchain.image} does not say which TensorRT-LLM it holds: neither of its Pythons has the package"
    return (Problem("runtime.image", what, 'state it: [runtime] trtllm = "0.21.0"; or take an image with TensorRT-LLM'),)


def check_driver(image: str, driver: str) -> None:
    """HostError where the NVIDIA driver is older than the image's CUDA needs; silent for an image that the table lacks."""
    known = release(image)
    if known is None or not driver or drives(driver, known.driver):
        return
    fitting = [each.tag for each in releases() if not each.bare and drives(driver, each.driver)]
    hint = f"update the driver to {known.driver} or newer" + (f", or use image {fitting[-1]}" if fitting else "")
    cuda = f" (CUDA {known.cuda})" if known.cuda else ""
    raise HostError(f"image {known.tag}{cuda} needs driver {known.driver}, and this machine has {driver}", hint=hint)
