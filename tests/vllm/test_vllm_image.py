"""The runtime vllm in Triton's image, on fakes: what is laid out, what it stands on, and what is refused."""

import json
import re
from pathlib import Path

import pytest

from fake_wiring import FakeWiring, World
from forge.api.forge import Forge
from forge.client.tensors import inputs_of
from forge.client.types import ModelMetadata, Request, TensorMetadata
from forge.client.vllm import sampling
from forge.errors import HostError, InferenceError, RecipeError, RepositoryError
from forge.plan.steps import MakeImage
from forge.repository.config import ROOT
from forge.schema import vllm_images
from forge.settings import Executor, Settings
from vllm_recipe import stated, write

DOCKER = 'executor = "docker"\nimage = "{}"'
REFERENCE = "nvcr.io/nvidia/tritonserver:25.08-vllm-python-py3"


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "recipes"


def contained(folder: Path, more: str = "", *, name: str = "tiny", image: str = "25.08", gpus: str = "all") -> Path:
    return write(folder, more, name=name, runtime=f'{DOCKER.format(image)}\ngpus = "{gpus}"')


def test_each_row_is_a_version_its_cuda_and_its_driver() -> None:
    rows = vllm_images.vllm_releases()
    assert [row.tag for row in rows] == sorted({row.tag for row in rows})
    assert all(part for row in rows for part in (row.vllm, row.cuda, row.driver))
    assert vllm_images.vllm_toolchain("25.08").image == REFERENCE
    assert vllm_images.vllm_toolchain(REFERENCE).vllm == "0.9.2"
    assert vllm_images.vllm_toolchain("acme/own:1").vllm == ""
    with pytest.raises(RecipeError, match=r"nearest known tag is '26\.08'"):
        vllm_images.vllm_toolchain("26.12")


def test_a_driver_too_old_is_refused_with_what_would_do() -> None:
    with pytest.raises(HostError, match=r"vLLM 0\.24\.0, CUDA 13\.3\.0\.035\) needs driver 610\.43") as caught:
        vllm_images.check_vllm_driver("26.07", "580.159.03")
    assert "use image 25.11" in caught.value.hint
    vllm_images.check_vllm_driver("25.11", "580.159.03")
    vllm_images.check_vllm_driver("acme/own:1", "1")


def test_a_repository_names_its_image_and_what_containers_see(shop: Forge, folder: Path, tmp_path: Path) -> None:
    built = shop.build([contained(folder, "[convert]\ntp = 2\n")], repository=tmp_path / "models")
    assert stated(built.repository) == {
        "model": f"{ROOT}/_assets/tiny/model",
        "dtype": "auto",
        "max_model_len": 200,
        "max_num_seqs": 4,
        "tensor_parallel_size": 2,
    }
    config = (built.repository / "tiny/config.pbtxt").read_text()
    assert "ENABLE_VLLM_HEALTH_CHECK" in config
    assert re.search(r'key: "vllm_version"\s+value \{\s+string_value: "0\.9\.2"', config), "by which clients know its words"
    (model,) = built.models
    assert model.serving is not None
    assert (model.serving.contained, model.serving.gpus, model.serving.world) == (True, "all", 2)
    assert shop.check(built.repository).findings == ()


def test_no_environment_is_made_and_the_key_has_the_image(shop: Forge, world: World, folder: Path) -> None:
    recipe = contained(folder, gpus="none")
    before = shop.plan([recipe])
    assert {step.name for step in before.steps} == {"image", "tiny: model", "tiny: entry"}
    (image,) = [step.action for step in before.steps if isinstance(step.action, MakeImage)]
    assert image.reference == REFERENCE
    assert any(f"vLLM 0.9.2 in {REFERENCE}" in note for note in before.notes)
    assert any("starts on none" in note for note in before.notes)
    world.containers.identity = "sha256:" + "b" * 64
    assert [step.key for step in before.steps] != [step.key for step in shop.plan([recipe]).steps]


def test_a_word_on_the_command_line_says_where_served(world: World, folder: Path, tmp_path: Path) -> None:
    def steps(recipe: Path, executor: Executor | None) -> set[str]:
        shop = Forge(tmp_path / "home", {}, wiring=FakeWiring(tmp_path / "home", world), settings=Settings(executor=executor))
        return {step.name for step in shop.plan([recipe]).steps}

    assert "image" in steps(write(folder), "docker")
    assert "vllm environment" in steps(contained(folder), "local")


def test_somebodys_own_image_is_asked_for_its_vllm(shop: Forge, world: World, folder: Path, tmp_path: Path) -> None:
    recipe = contained(folder, image="acme/own:1")
    with pytest.raises(RecipeError, match="does not say which vLLM it holds"):
        shop.build([recipe], repository=tmp_path / "models")
    assert world.origin.fetches == 0
    world.containers.vllm = "0.21.0"
    shop.build([recipe], repository=tmp_path / "models")
    assert any("vLLM 0.21.0 in acme/own:1" in note for note in shop.plan([recipe]).notes)


def test_nothing_is_installed_into_the_image(shop: Forge, folder: Path) -> None:
    recipe = write(folder, runtime=f"{DOCKER.format('25.08')}\npackages = ['einops']")
    with pytest.raises(RecipeError, match=r"runtime\.packages.*nothing is installed"):
        shop.plan([recipe])


def test_a_tag_that_only_the_other_table_has_is_said(shop: Forge, folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"nearest known tag is '24\.12'"):
        shop.plan([contained(folder, image="24.10")])
    assert shop.plan([write(folder, runtime='image = "26.08"')]).steps, "served without an image"


def test_models_of_image_and_machine_need_a_repository_each(shop: Forge, folder: Path, tmp_path: Path) -> None:
    shop.build([contained(folder)], repository=tmp_path / "models")
    shop.add([contained(folder, "[serve.vllm]\ngpu_memory_utilization = 0.3", name="other")], repository=tmp_path / "models")
    with pytest.raises(RepositoryError, match="one each"):
        shop.add([write(folder, name="local")], repository=tmp_path / "models")


def test_a_lock_pins_the_image_and_its_vllm(shop: Forge, folder: Path) -> None:
    file, _ = shop.lock(contained(folder))
    image = json.loads(file.read_text())["image"]
    assert image == {"reference": REFERENCE, "digest": "sha256:" + "a" * 64, "vllm": "0.9.2"}
    assert shop.plan([contained(folder)]).steps


# -- asking

TEXTS = ("text_input", "sampling_parameters", "embedding_request")
MODEL = ModelMetadata("m", {name: TensorMetadata(name, "BYTES", (1,)) for name in TEXTS}, {}, decoupled=True)


@pytest.mark.parametrize(
    "words", [Request("m", "a", 5, n=2, temperature=1.0), Request("m", "a", 5, inputs={"sampling_parameters": '{"n": 3}'})]
)
def test_several_answers_are_refused_there_and_nowhere_else(words: Request) -> None:
    with pytest.raises(InferenceError, match="mixes several answers up"):
        inputs_of(words, MODEL)
    assert json.loads(sampling(words))["n"] > 1


def test_structured_outputs_are_json_text_which_both_backends_read() -> None:
    asked = Request("m", "a", 5, inputs={"sampling_parameters": '{"structured_outputs": {"regex": "a+"}}'})
    assert json.loads(sampling(asked))["structured_outputs"] == '{"regex": "a+"}'
