"""Images, what they hold, and what they can build."""

import pytest
from msgspec.structs import replace

from forge.errors import HostError, Problem, RecipeError
from forge.schema import tags
from forge.schema.values import Recipe, RuntimeKind, RuntimeTable, Source
from forge.trtllm import image_table

DIGEST = "sha256:" + "0" * 64


def _recipe(kind: RuntimeKind, image: str) -> Recipe:
    return Recipe(name="m", source=Source(hub="a/b"), runtime=RuntimeTable(kind=kind, image=image))


def _check(kind: RuntimeKind, image: str) -> tuple[Problem, ...]:
    return image_table.check(_recipe(kind, image), image_table.toolchain(image))


@pytest.mark.parametrize(
    ("image", "reference", "trtllm", "examples"),
    [
        ("25.08", "nvcr.io/nvidia/tritonserver:25.08-trtllm-python-py3", "0.21.0", "/app/examples/models/core"),
        ("25.05", "nvcr.io/nvidia/tritonserver:25.05-trtllm-python-py3", "0.19.0", "/app/examples/models/core"),
        ("25.04", "nvcr.io/nvidia/tritonserver:25.04-trtllm-python-py3", "0.18.2", "/app/examples"),
        ("25.02-trtllm-python-py3", "nvcr.io/nvidia/tritonserver:25.02-trtllm-python-py3", "0.17.0.post1", "/app/examples"),
        (
            "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3",
            "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3",
            "1.2.1",
            "/app/examples/models/core",
        ),
        (DIGEST, f"nvcr.io/nvidia/tritonserver@{DIGEST}", "", "/app/examples/models/core"),
        (f"my/image@{DIGEST}", f"my/image@{DIGEST}", "", "/app/examples/models/core"),
        ("registry.local:5000/triton:mine", "registry.local:5000/triton:mine", "", "/app/examples/models/core"),
    ],
)
def test_an_image_says_its_toolchain(image: str, reference: str, trtllm: str, examples: str) -> None:
    found = image_table.toolchain(image)
    assert (found.image, found.trtllm, found.examples) == (reference, trtllm, examples)


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        ("24.08", "'24.10'"),
        ("26.12", "'26.07'"),
        ("25.8", "'25.08'"),
        ("nvcr.io/nvidia/tritonserver:27.01-trtllm-python-py3", "'26.07'"),
        ("latest", "whole reference"),
    ],
)
def test_an_unknown_tag_is_told_with_the_nearest_known(image: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=r"runtime\.image") as error:
        image_table.toolchain(image)
    assert hint in error.value.problems[0].hint


def test_the_table_is_in_order_and_no_tag_stands_twice() -> None:
    known = [each.tag for each in image_table.releases()]
    assert known == sorted(set(known))
    versions = [tags.version(each.trtllm) for each in image_table.releases()]
    assert versions == sorted(versions)


def test_the_pytorch_path_needs_an_image_that_has_it() -> None:
    (problem,) = _check(RuntimeKind.LLMAPI, "25.04")
    assert problem.where == "runtime.image"
    assert "25.05, 25.06" in problem.hint
    for kind, image in ((RuntimeKind.LLMAPI, "25.05"), (RuntimeKind.ENGINE, "25.01"), (RuntimeKind.TWIN, "24.10")):
        assert _check(kind, image) == ()
    assert _check(RuntimeKind.LLMAPI, DIGEST) == ()


@pytest.mark.parametrize("image", ["24.10", "24.11", "24.12"])
def test_images_without_scripts_and_skeletons_are_refused_for_that(image: str) -> None:
    (problem,) = _check(RuntimeKind.ENGINE, image)
    assert "it holds no /app" in problem.what
    assert "25.01, 25.02" in problem.hint


def test_the_version_of_an_image_without_one_is_not_guessed() -> None:
    mine = "registry.local:5000/triton:mine"
    asked = replace(image_table.toolchain(mine), identity="sha256:1")
    (problem,) = image_table.check(_recipe(RuntimeKind.ENGINE, mine), asked)
    assert "does not say which TensorRT-LLM it holds" in problem.what
    assert image_table.check(_recipe(RuntimeKind.ENGINE, mine), image_table.toolchain(mine)) == ()
    assert image_table.check(_recipe(RuntimeKind.ENGINE, mine), replace(asked, trtllm="0.18.2")) == ()


def test_a_stated_version_that_the_image_contradicts_is_refused() -> None:
    recipe = Recipe(name="m", source=Source(hub="a/b"), runtime=RuntimeTable(image="25.08", trtllm="0.20.0"))
    (problem,) = image_table.check(recipe, image_table.toolchain("25.08"))
    assert (problem.where, "holds TensorRT-LLM 0.21.0" in problem.what) == ("runtime.trtllm", True)


def test_a_stated_version_says_where_the_scripts_lie() -> None:
    assert image_table.toolchain("my/image:1", "0.18.2").examples == "/app/examples"
    assert image_table.toolchain("my/image:1", "1.0").examples == "/app/examples/models/core"


def test_a_version_is_compared_as_far_as_stated() -> None:
    assert tags.same("1.0.3", "1.0.3.2510")
    assert not tags.same("1.0.2", "1.0.3.2510")
    assert not tags.same("0.21.0", "0.20.0")


def test_an_old_driver_is_told_with_a_fitting_image() -> None:
    with pytest.raises(HostError, match=r"needs driver 580\.95") as error:
        image_table.check_driver("26.01", "575.57.08")
    assert "25.10" in error.value.hint
    image_table.check_driver("26.01", "580.95.05")
    image_table.check_driver("registry.local/triton:1", "1.0")
    with pytest.raises(HostError, match=r"image 25\.08 needs driver 575\.51\.03, and this machine has 570\.10"):
        image_table.check_driver("25.08", "570.10")


def test_every_image_states_its_least_driver() -> None:
    assert [each.tag for each in image_table.releases() if not each.driver] == []
    image_table.check_driver("26.01", "")
