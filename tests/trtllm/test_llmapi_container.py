"""llmapi from recipe to tokens with a real Docker engine and the stand-in image: read, laid out, served, asked."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import replace

import lora_kit
from docker_fixture import environ
from forge.api.forge import Forge
from forge.client.grpc import TritonClient
from forge.client.types import Request
from forge.errors import InferenceError, RecipeError
from forge.machine.docker.daemon import Daemon
from forge.serve.server import Servers
from patience import free_ports, soon
from standin import checkpoints, image
from standin.tree import Image

pytestmark = pytest.mark.slow
RECIPE = """
name = "{name}"
[source]
path = "{model}"
[runtime]
kind = "{kind}"
image = "{image}"
gpus = "none"
[convert]
dtype = "float32"
[build]
max_batch_size = 4
max_input_len = 60
max_seq_len = 100
"""
BARE = "FROM ${base}\nRUN echo ${pip}\n"
"""The stand-in has all that its tools need; what a family requires on top would come from a registry."""


class Bench(Struct, frozen=True):
    """A Forge on the engine, recipes of two random models, and the stand-in."""

    shop: Forge
    folder: Path
    engine: str
    image: Image

    def recipe(self, name: str, kind: str = "llmapi") -> Path:
        file = self.folder / f"{name}.toml"
        file.write_text(RECIPE.format(name=name, model=name, kind=kind, image=self.image.reference))
        return file


@pytest.fixture
def bench(engine: str, standin: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    checkpoints.llama(tmp_path / "first")
    checkpoints.gemma(tmp_path / "second")
    (tmp_path / "Dockerfiles").mkdir()
    (tmp_path / "Dockerfiles" / "family.Dockerfile").write_text(BARE)
    monkeypatch.chdir(tmp_path)
    return Bench(Forge(tmp_path / "home", environ(engine)), tmp_path, engine, standin)


@pytest.fixture
def served(bench: Bench) -> Iterator[tuple[str, Path]]:
    """Both models in one server: (its address, its repository)."""
    built = bench.shop.build([bench.recipe("first"), bench.recipe("second")], repository=bench.folder / "models")
    running = bench.shop.serve(built.repository, free_ports(), detach=True)
    yield f"127.0.0.1:{running.ports.grpc}", built.repository
    bench.shop.stop(running)


def ask(address: str, request: Request) -> list[str]:
    return [chunk.text for chunk in TritonClient(60.0).generate(address, request)]


def test_two_checkpoints_stream_side_by_side_their_own_texts(served: tuple[str, Path]) -> None:
    address, repository = served
    for name in ("first", "second"):
        request = Request(f"{name}-tensorrt_llm", "Why?", 12, temperature=0.0)
        pieces = ask(address, request)
        assert len(pieces) > 1
        assert "".join(pieces) == checkpoints.greedy(repository / "_assets" / name / "model", "Why?", 12)
        assert ask(address, replace(request, stream=False)) == ["".join(pieces)]
        for stream in (True, False):
            chunks = list(TritonClient(60.0).generate(address, replace(request, stream=stream)))
            assert chunks[-1].finish == "length"
            assert not any(chunk.finish for chunk in chunks[:-1])
    with pytest.raises(InferenceError, match=r"exceeds max_seq_len \(100\)"):
        ask(address, Request("first-tensorrt_llm", "Why?", 100))


def test_a_container_that_is_killed_comes_back_with_its_models(bench: Bench, served: tuple[str, Path]) -> None:
    address, repository = served
    requests = [Request(f"{name}-tensorrt_llm", "Why?", 12, temperature=0.0, stream=False) for name in ("first", "second")]
    before, said = bench.shop.server(repository), [ask(address, request) for request in requests]
    with Daemon(environ(bench.engine)).connected() as api:
        api.kill(before.container)

    def again() -> bool:
        try:
            return [ask(address, request) for request in requests] == said
        except InferenceError:
            return False

    assert soon(lambda: not Servers(bench.shop.home, environ(bench.engine)).alive(before), pause=0.1)
    assert soon(again, pause=0.2)
    assert [crash.why for crash in bench.shop.server(repository).crashes] == ["signal 9, SIGKILL"]


def test_a_recipes_mistake_is_held_against_the_images_own_config(bench: Bench) -> None:
    recipe = bench.recipe("first")
    recipe.write_text(recipe.read_text() + "[sampling]\nrepetition_penalty = 1.1\n")
    with pytest.raises(RecipeError, match=r"sampling\.repetition_penalty.*\n.*presence_penalty"):
        bench.shop.build([recipe], repository=bench.folder / "models")


LORA = '\n[[lora]]\nname = "loud"\npath = "loud"\n'


@pytest.fixture
def later(bench: Bench) -> Bench:
    """The same with an image whose llmapi model has inputs for adapters, as NVIDIA's has since May 2026."""
    import docker

    place = bench.folder / "later"
    place.mkdir()
    config = image.HERE / "app/all_models/llmapi/tensorrt_llm/config.pbtxt"
    (place / "config.pbtxt").write_text(config.read_text() + image.LORA_INPUTS)
    copy = "COPY config.pbtxt /app/all_models/llmapi/tensorrt_llm/config.pbtxt\n"
    (place / "Dockerfile").write_text(f"FROM {bench.image.reference}\n{copy}")
    client = docker.DockerClient(base_url=bench.engine)
    built, _ = client.images.build(path=str(place), tag="forge-standin/later:1")
    client.close()
    return replace(bench, image=Image(bench.image.archive, str(built.id), "forge-standin/later:1"))


def test_an_adapter_is_named_by_its_place_in_containers(later: Bench) -> None:
    """The stand-in adds it for real: it says what transformers says with the adapter merged."""
    lora_kit.adapter(later.folder / "loud", 4, 1)
    recipe = later.recipe("first")
    recipe.write_text(recipe.read_text() + LORA)
    built = later.shop.build([recipe], repository=later.folder / "models")
    running = later.shop.serve(built.repository, free_ports(), restart=False)
    try:
        said = {
            name: "".join(
                chunk.text
                for chunk in later.shop.generate(
                    target.address, replace(target.request("Why?"), temperature=0.0, max_tokens=12)
                )
            )
            for name in ("first", "first:loud")
            for target in [later.shop.target(name, built.repository)]
        }
    finally:
        later.shop.stop(running)
    wanted = {"first": 0.0, "first:loud": 2.0}
    assert said == {
        name: lora_kit.says(later.folder / "first", later.folder / "loud", scale, "Why?") for name, scale in wanted.items()
    }
    assert said["first"] != said["first:loud"]


def test_an_image_without_adapters_is_refused_before_the_fetch(bench: Bench) -> None:
    lora_kit.adapter(bench.folder / "loud", 4, 1)
    recipe = bench.recipe("first")
    recipe.write_text(recipe.read_text() + LORA)
    with pytest.raises(RecipeError, match="has no inputs for an adapter"):
        bench.shop.build([recipe], repository=bench.folder / "models")
