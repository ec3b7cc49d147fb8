"""Which image holds which TensorRT-LLM, CUDA and driver, and what it can build: a table and look-ups.

The images are ``nvcr.io/nvidia/tritonserver:TAG-trtllm-python-py3``; the figures are those of their release notes, as gathered
in forge's design notes. A tag that is not in the table is refused with the nearest one that is.
"""

import difflib
import re
from dataclasses import dataclass

from forge.errors import HostError, Problem, RecipeError
from forge.model import Recipe, RuntimeKind, Toolchain

REGISTRY = "nvcr.io/nvidia/tritonserver"
SUFFIX = "-trtllm-python-py3"


@dataclass(frozen=True, slots=True)
class Release:
    """One image: its tag, TensorRT-LLM's version, and where NVIDIA states them the CUDA version and least driver."""

    tag: str
    trtllm: str
    cuda: str = ""
    driver: str = ""

    @property
    def reference(self) -> str:
        return f"{REGISTRY}:{self.tag}{SUFFIX}"

    @property
    def kinds(self) -> tuple[RuntimeKind, ...]:
        """How a recipe can be lowered in it; the PyTorch path came with 25.05."""
        modern = version(self.tag) >= version("25.05")
        return (RuntimeKind.ENGINE, RuntimeKind.LLMAPI) if modern else (RuntimeKind.ENGINE,)


RELEASES = (
    Release("24.10", "0.14.0"),
    Release("24.11", "0.15.0"),
    Release("24.12", "0.16.0"),
    Release("25.01", "0.17.0"),
    Release("25.02", "0.17.0.post1"),
    Release("25.03", "0.18.0"),
    Release("25.04", "0.18.2"),
    Release("25.05", "0.19.0"),
    Release("25.06", "0.20.0", "12.9.0", "575.51"),
    Release("25.07", "0.20.0"),
    Release("25.08", "0.21.0"),
    Release("25.09", "1.0.0", "12.9.1", "575.57"),
    Release("25.10", "1.0.0", "12.9.1", "575.57"),
    Release("25.11", "1.0.3"),
    Release("25.12", "1.1.0", "13.0.2", "580.95"),
    Release("26.01", "1.1.0", "13.0.2", "580.95"),
    Release("26.02", "1.1.0", "13.0.2", "580.95"),
    Release("26.03", "1.2.0", "13.1", "590.44"),
    Release("26.04", "1.2.1"),
    Release("26.05", "1.2.1"),
    Release("26.06", "1.2.1"),
    Release("26.07", "1.2.1"),
)
"""Every image that is known to hold the engine path, oldest first."""

_BY_TAG = {release.tag: release for release in RELEASES}
_DIGEST = re.compile(r"(?P<name>[A-Za-z0-9._:/-]+@)?sha256:[0-9a-f]{64}")
_TAG = re.compile(r"\d\d\.\d\d")


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, comparable: ``0.17.0.post1`` is (0, 17, 0)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", text).group().split(".") if part)  # type: ignore[union-attr]


def release(image: str) -> Release | None:
    """The table's row for a tag or for a whole reference to NVIDIA's image; None where the table cannot know it."""
    tag = image.removeprefix(f"{REGISTRY}:").removesuffix(SUFFIX)
    return _BY_TAG.get(tag)


def toolchain(image: str) -> Toolchain:
    """What is known of a recipe's ``runtime.image`` before anyone has looked inside it.

    A digest or a reference to somebody's own image says nothing of its version: ``trtllm`` is empty, and the scripts
    are taken to lie where newer images have them. A tag that the table lacks is a RecipeError.
    """
    known = release(image)
    if known is not None:
        return Toolchain(known.reference, known.trtllm, examples(known.trtllm))
    if _DIGEST.fullmatch(image):
        return Toolchain(image if "@" in image else f"{REGISTRY}@{image}", "", examples(""))
    if ("/" in image or ":" in image) and not image.startswith(f"{REGISTRY}:"):
        return Toolchain(image, "", examples(""))
    tag = image.removeprefix(f"{REGISTRY}:").removesuffix(SUFFIX)
    raise RecipeError((Problem("runtime.image", f"no image {image!r} is known; {_tags()}", _nearest(tag)),))


def examples(trtllm: str) -> str:
    """The folder that holds one folder of scripts per model family; the layout changed with 0.19."""
    return "/app/examples" if trtllm and version(trtllm) < (0, 19) else "/app/examples/models/core"


def check(recipe: Recipe) -> tuple[Problem, ...]:
    """Whether the recipe's image can build what its runtime asks."""
    known = release(recipe.runtime.image)
    kind = recipe.runtime.kind
    if known is None or kind is RuntimeKind.TWIN or kind in known.kinds:
        return ()
    what = f"{known.tag} (TensorRT-LLM {known.trtllm}) cannot serve the {kind} runtime"
    able = ", ".join(each.tag for each in RELEASES if kind in each.kinds)
    return (Problem("runtime.image", what, f"images that can: {able}"),)


def check_driver(image: str, driver: str) -> None:
    """HostError where the NVIDIA driver is older than the image's CUDA needs; silent where the table states none."""
    known = release(image)
    if known is None or not known.driver or not driver or version(driver)[:2] >= version(known.driver):
        return
    fitting = [each.tag for each in RELEASES if each.driver and version(driver)[:2] >= version(each.driver)]
    hint = f"update the driver to {known.driver} or newer" + (f", or use image {fitting[-1]}" if fitting else "")
    what = f"image {known.tag} (CUDA {known.cuda}) needs driver {known.driver}, and this machine has {driver}"
    raise HostError(what, hint=hint)


def explain_mismatch(image: str, other: str) -> str:
    """Why examples or engines of TensorRT-LLM ``other`` do not go with ``image``; "" where nothing is against it."""
    known = release(image)
    if known is None or not other or known.trtllm == other:
        return ""
    fitting = [each.tag for each in RELEASES if each.trtllm == other]
    mend = f"{other} is in image {' or '.join(fitting)}" if fitting else f"no known image holds {other}"
    return f"image {known.tag} holds TensorRT-LLM {known.trtllm}, not {other}; {mend}"


def _tags() -> str:
    return f"known tags: {RELEASES[0].tag} to {RELEASES[-1].tag}"


def _nearest(tag: str) -> str:
    if _TAG.fullmatch(tag):
        near = min(RELEASES, key=lambda each: abs(_months(each.tag) - _months(tag)))
        return f"the nearest known tag is {near.tag!r}; a whole reference or a digest is taken as it is"
    close = difflib.get_close_matches(tag, _BY_TAG, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else "a whole reference (registry/name:tag) or a digest is taken as it is"


def _months(tag: str) -> int:
    year, month = tag.split(".")
    return int(year) * 12 + int(month)
