"""Images, what they hold, and what they can build."""

import pytest

from forge import compatibility
from forge.errors import HostError, RecipeError
from forge.model import Recipe, RuntimeKind, RuntimeTable, Source

DIGEST = "sha256:" + "0" * 64


def _recipe(kind: RuntimeKind, image: str) -> Recipe:
    return Recipe(name="m", source=Source(hub="a/b"), runtime=RuntimeTable(kind=kind, image=image))


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
    found = compatibility.toolchain(image)
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
        compatibility.toolchain(image)
    assert hint in error.value.problems[0].hint


def test_the_table_is_in_order_and_no_tag_stands_twice() -> None:
    tags = [each.tag for each in compatibility.RELEASES]
    assert tags == sorted(set(tags))
    versions = [compatibility.version(each.trtllm) for each in compatibility.RELEASES]
    assert versions == sorted(versions)


def test_the_pytorch_path_needs_an_image_that_has_it() -> None:
    (problem,) = compatibility.check(_recipe(RuntimeKind.LLMAPI, "25.04"))
    assert problem.where == "runtime.image"
    assert "25.05, 25.06" in problem.hint
    assert compatibility.check(_recipe(RuntimeKind.LLMAPI, "25.05")) == ()
    assert compatibility.check(_recipe(RuntimeKind.ENGINE, "24.10")) == ()
    assert compatibility.check(_recipe(RuntimeKind.TWIN, "24.10")) == ()
    assert compatibility.check(_recipe(RuntimeKind.LLMAPI, DIGEST)) == ()


def test_an_old_driver_is_told_with_an_image_that_fits_it() -> None:
    with pytest.raises(HostError, match=r"needs driver 580\.95") as error:
        compatibility.check_driver("26.01", "575.57.08")
    assert "25.10" in error.value.hint
    compatibility.check_driver("26.01", "580.95.05")
    compatibility.check_driver("25.08", "1.0")
    compatibility.check_driver("26.01", "")


def test_the_well_known_mismatch_is_explained() -> None:
    told = compatibility.explain_mismatch("25.06", "0.21.0")
    assert told == "image 25.06 holds TensorRT-LLM 0.20.0, not 0.21.0; 0.21.0 is in image 25.08"
    assert compatibility.explain_mismatch("25.08", "0.21.0") == ""
    assert "no known image holds 9.9" in compatibility.explain_mismatch("25.08", "9.9")
