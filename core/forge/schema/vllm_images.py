"""Which of Triton's images holds which vLLM, CUDA and driver: a table and look-ups.

The images are ``nvcr.io/nvidia/tritonserver:TAG-vllm-python-py3``. A tag that is not in the table (vllm_images.toml) is refused
with the nearest one that is.
"""

from functools import cache

from msgspec import Struct

from forge.errors import HostError
from forge.files import texts
from forge.schema import tags
from forge.schema.values import Toolchain

SUFFIX = "-vllm-python-py3"
VERSION = "vllm_version"
"""Parameter of config.pbtxt by which forge tells clients which vLLM serves a model: its words changed."""


class VllmRelease(Struct, frozen=True):
    """One image: its tag, vLLM's version, CUDA's, and the least driver."""

    tag: str
    vllm: str
    cuda: str
    driver: str

    @property
    def reference(self) -> str:
        return f"{tags.REGISTRY}:{self.tag}{SUFFIX}"


class _Table(Struct):
    image: tuple[VllmRelease, ...]


@cache
def vllm_releases() -> tuple[VllmRelease, ...]:
    """Every image with vLLM that forge knows, oldest first (vllm_images.toml says where its figures are from)."""
    return texts.shipped("forge.schema", "vllm_images.toml", _Table).image


def vllm_release(image: str) -> VllmRelease | None:
    """The table's row for a tag or for a whole reference to NVIDIA's image; None where the table cannot know it."""
    wanted = tags.tag(image, SUFFIX)
    return next((each for each in vllm_releases() if each.tag == wanted), None)


def vllm_toolchain(image: str) -> Toolchain:
    """What is known of a recipe's ``runtime.image`` before anyone has looked inside; RecipeError for an unknown tag.

    A digest or a reference to somebody's own image says nothing of its version, until the image is asked.
    """
    if known := vllm_release(image):
        return Toolchain(known.reference, "", "", vllm=known.vllm)
    if reference := tags.whole(image):
        return Toolchain(reference, "", "")
    raise tags.unknown(image, SUFFIX, [each.tag for each in vllm_releases()])


def check_vllm_driver(image: str, driver: str) -> None:
    """HostError where the NVIDIA driver is older than the image's CUDA needs; silent for an image that the table lacks."""
    known = vllm_release(image)
    if known is None or not driver or tags.drives(driver, known.driver):
        return
    fitting = [each.tag for each in vllm_releases() if tags.drives(driver, each.driver)]
    hint = f"update the driver to {known.driver} or newer" + (f", or use image {fitting[-1]}" if fitting else "")
    image_says = f"image {known.tag} (vLLM {known.vllm}, CUDA {known.cuda}) needs driver {known.driver}"
    raise HostError(f"{image_says}, and this machine has {driver}", hint=hint)
