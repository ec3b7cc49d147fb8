"""Tags of NVIDIA's Triton images, and the versions in the tables of them: compared, told apart, guessed. Pure."""

import re
from collections.abc import Sequence

from forge.errors import Problem, RecipeError, meant

REGISTRY = "nvcr.io/nvidia/tritonserver"
_DIGEST = re.compile(r"(?P<name>[A-Za-z0-9._:/-]+@)?sha256:[0-9a-f]{64}")
_TAG = re.compile(r"\d\d\.\d\d")


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, comparable: ``0.17.0.post1`` is (0, 17, 0)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", text).group().split(".") if part)  # type: ignore[union-attr]


def same(stated: str, found: str) -> bool:
    """Whether a version is the one that was found, as far as it is stated: an engine of 1.0.3 is one of 1.0.3.2510."""
    return version(found)[: len(version(stated))] == version(stated)


def drives(driver: str, least: str) -> bool:
    """Whether a driver is new enough, by its branch and minor number: one minor number runs one CUDA."""
    return version(driver)[:2] >= version(least)[:2]


def tag(image: str, suffix: str) -> str:
    """``image`` without what NVIDIA's references have around their tag."""
    return image.removeprefix(f"{REGISTRY}:").removesuffix(suffix)


def whole(image: str) -> str:
    """The reference of an image that no table speaks of: a digest, or somebody's own; empty for what can only be a tag."""
    if _DIGEST.fullmatch(image):
        return image if "@" in image else f"{REGISTRY}@{image}"
    return image if ("/" in image or ":" in image) and not image.startswith(f"{REGISTRY}:") else ""


def unknown(image: str, suffix: str, known: Sequence[str]) -> RecipeError:
    """The error for a tag that is none of ``known`` (oldest first), with the nearest of them."""
    what = f"no image {image!r} is known; known tags: {known[0]} to {known[-1]}"
    return RecipeError((Problem("runtime.image", what, _nearest(tag(image, suffix), known)),))


def _nearest(wanted: str, known: Sequence[str]) -> str:
    if _TAG.fullmatch(wanted):
        near = min(known, key=lambda each: abs(_months(each) - _months(wanted)))
        return f"the nearest known tag is {near!r}; a whole reference or a digest is taken as it is"
    return meant(wanted, known, "a whole reference (registry/name:tag) or a digest is taken as it is")


def _months(text: str) -> int:
    year, month = text.split(".")
    return int(year) * 12 + int(month)
