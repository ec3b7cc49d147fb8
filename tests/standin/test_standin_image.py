"""The stand-in image: the same each time, and whole: it converts, builds and serves in containers of a real Docker engine."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from msgspec.structs import replace

from docker_fixture import environ
from forge.api.forge import Forge
from forge.client.grpc import TritonClient
from forge.client.types import Request
from forge.errors import InferenceError
from forge.machine.containers import ContainerRun
from forge.machine.docker.containers import DockerContainers
from forge.repository.config import ROOT, render, settings, skeletons
from forge.schema.values import ASSETS, BuildTable, Command, ConfigOverrides, Names, Ports, Recipe, ServeTable, Source
from patience import PATIENCE, free_ports
from standin import checkpoints, image
from standin.tree import File, Image, Link, Settings, write
from triton_fixture import Serving

pytestmark = pytest.mark.slow
KEY = "5tand1n" * 4
PLAIN = ConfigOverrides()
RECIPE = Recipe(
    name="tiny",
    source=Source(path="tiny"),
    build=BuildTable(max_batch_size=4, max_input_len=100, max_seq_len=200),
    serve=ServeTable(),
)
ENGINE_LIMITS = ("--max_batch_size", "4", "--max_input_len", "100", "--max_seq_len", "200")


def test_an_archive_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    tree: dict[str, File | Link] = {
        "bin/hello": File(b"#!/bin/sh\necho hello\n", 0o755),
        "usr/hello": Link("/bin/hello"),
        "tmp/": File(b""),
    }
    (tmp_path / "file").write_text("x")
    one = write({**tree, "etc/x": File(tmp_path / "file")}, Settings(), "hello:1", tmp_path / "one.tar")
    (tmp_path / "file").touch()
    time.sleep(0.01)
    two = write(dict(reversed([*tree.items(), ("etc/x", File(b"x"))])), Settings(), "hello:1", tmp_path / "two.tar")
    assert one.id == two.id
    assert one.archive.read_bytes() == two.archive.read_bytes()
    assert write(tree, Settings(), "hello:1", tmp_path / "three.tar").id != one.id


def test_the_image_is_made_once_and_stays_small(standin_archive: Image, serving: Serving, tmp_path: Path) -> None:
    kept = standin_archive.archive.parent.parent
    before = standin_archive.archive.stat().st_mtime_ns
    assert image.archive(serving.environment, kept=kept) == standin_archive
    assert standin_archive.archive.stat().st_mtime_ns == before
    assert standin_archive.archive.stat().st_size < 500 * 1024**2


def test_an_image_without_the_engine_path_has_llmapi_alone(serving: Serving) -> None:
    tree = image.rootfs(serving.environment, image.Release(tag="26.08", tensorrt_llm="1.3.0", engine_path=False))
    assert not any(path.startswith(("app/examples", "app/all_models/inflight", "usr/local/bin/trtllm")) for path in tree)
    assert "app/all_models/llmapi/tensorrt_llm/1/model.py" in tree
    assert any(path.endswith("tensorrt_llm-1.3.0.dist-info/METADATA") for path in tree)


def run(engine: str, standin: Image, out: Path, *argv: str, **inputs: Path) -> list[str]:
    """One command in the image, as forge runs it; what it said."""
    out.mkdir(exist_ok=True)
    lines: list[str] = []
    job = ContainerRun(
        image=standin.reference, command=Command(argv), inputs=inputs, out=out, log=out.with_suffix(".log"), key=KEY
    )
    DockerContainers(environ(engine)).run(job, lines.append)
    return lines


def test_the_image_says_which_release_it_is(engine: str, standin: Image, tmp_path: Path) -> None:
    said = run(engine, standin, tmp_path / "out", "sh", "-c", "python3 -m pip list --format=freeze; trtllm-build --help")
    assert "tensorrt_llm==0.21.0" in said
    assert "[TensorRT-LLM] TensorRT-LLM version: 0.21.0" in said
    assert any(line.startswith("usage: trtllm-build") for line in said)


@pytest.fixture(scope="module")
def made(engine: str, standin: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in model/, built/ from it in containers."""
    folder = tmp_path_factory.mktemp("made")
    model = checkpoints.llama(folder / "model")
    convert = ("--model_dir", "/forge/model", "--output_dir", "/forge/out", "--dtype", "float32")
    script = "/app/examples/models/core/llama/convert_checkpoint.py"
    run(engine, standin, folder / "converted", "python3", script, *convert, model=model)
    build = ("trtllm-build", "--checkpoint_dir", "/forge/checkpoint", "--output_dir", "/forge/out", *ENGINE_LIMITS)
    run(engine, standin, folder / "built", *build, checkpoint=folder / "converted")
    return folder


def lay(repository: Path, made: Path, overrides: ConfigOverrides = PLAIN) -> Path:
    """The five models of the recipe, with their tokenizer and their engines."""
    files = render(Names(), skeletons(), settings(RECIPE, overrides))
    for file in files:
        (repository / file.path).parent.mkdir(parents=True, exist_ok=True)
        (repository / file.path).write_text(file.content)
    for kind, source, names in (
        ("tokenizer", made / "model", ("tokenizer.json", "tokenizer_config.json")),
        ("engines", made / "built", ("config.json", "rank0.engine")),
    ):
        (repository / ASSETS / "tiny" / kind).mkdir(parents=True)
        for name in names:
            (repository / ASSETS / "tiny" / kind / name).write_bytes((source / name).read_bytes())
    return repository


@contextmanager
def server(
    engine: str, standin: Image, repository: Path, *models: str, model: Path | None = None, ranks: int = 1
) -> Generator[Ports]:
    """Triton in a container of the image, ready; AssertionError, with its log, when it does not come up."""
    import docker
    from docker.types import Mount

    ports = free_ports()
    argv = ["tritonserver", f"--model-repository={ROOT}", "--model-control-mode=explicit"]
    argv += [f"--load-model={name}" for name in models]
    for name, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
        argv += [f"--{name}-address=127.0.0.1", f"--{name}-port={port}"]
    if ranks > 1:
        argv = ["mpirun", "--allow-run-as-root", *" : ".join([f"-n 1 {' '.join(argv)}"] * ranks).split()]
    mounts = [Mount(ROOT, str(repository), type="bind", read_only=True)]
    mounts += [Mount("/forge/model", str(model), type="bind", read_only=True)] if model else []
    client = docker.DockerClient(base_url=engine)
    container = client.containers.create(
        standin.reference, argv, network_mode="host", mounts=mounts, shm_size="1g", init=True, name=f"standin-{ports.grpc}"
    )
    try:
        container.start()
        stumbles = 3  # Triton loses a lock of its own now and then when it starts, as forge knows of it
        while not ready(ports.http, models):
            container.reload()
            if container.status != "running" and stumbles and b"lock_exception" in container.logs():
                stumbles -= 1
                container.restart()
                continue
            assert container.status == "running", container.logs().decode()
            time.sleep(0.1)
        yield ports
    finally:
        container.remove(force=True)
        client.close()


def ready(port: int, models: tuple[str, ...]) -> bool:
    for name in models:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", f"/v2/models/{name}/ready")
            if connection.getresponse().status != 200:
                return False
        except OSError:
            return False
        finally:
            connection.close()
    return True


def ask(ports: Ports, request: Request) -> list[str]:
    return [chunk.text for chunk in TritonClient(PATIENCE).generate(f"127.0.0.1:{ports.grpc}", request)]


def test_a_container_serves_an_engine_built_in_a_container(engine: str, standin: Image, made: Path, tmp_path: Path) -> None:
    repository = lay(tmp_path / "repository", made)
    models = sorted(config.parent.name for config in repository.glob("*/config.pbtxt"))
    with server(engine, standin, repository, *models) as ports:
        request = Request("tensorrt_llm_bls", "Why?", 8, temperature=0.0)
        pieces = ask(ports, request)
        assert len(pieces) > 1
        assert "".join(pieces) == checkpoints.greedy(made / "model", "Why?", 8)
        assert "".join(ask(ports, replace(request, stream=False))) == "".join(pieces)
        with pytest.raises(InferenceError, match=r"exceeds the model's max_input_len \(100\)"):
            ask(ports, replace(request, prompt="x" * 101))


def test_an_engine_of_another_release_is_not_served(engine: str, standin: Image, made: Path, tmp_path: Path) -> None:
    repository = lay(tmp_path / "repository", made)
    config = repository / ASSETS / "tiny" / "engines" / "config.json"
    text = config.read_text()
    old = '"version": "0.21.0",\n    "pre'
    assert old in text
    config.write_text(text.replace(old, old.replace("21", "20")))
    with pytest.raises(AssertionError, match="Version tag does not match"), server(engine, standin, repository, "tensorrt_llm"):
        pass


def test_an_engine_in_parts_is_served_by_mpis_processes(engine: str, standin: Image, made: Path, tmp_path: Path) -> None:
    repository = lay(tmp_path / "repository", made)
    engines = repository / ASSETS / "tiny" / "engines"
    (engines / "config.json").write_text((engines / "config.json").read_text().replace('"tp_size": 1', '"tp_size": 2'))
    (engines / "rank1.engine").write_bytes(b"")
    with pytest.raises(AssertionError, match="MPI worldSize is expected"), server(engine, standin, repository, "tensorrt_llm"):
        pass
    with server(engine, standin, repository, "tensorrt_llm", ranks=2):
        pass


def test_llmapi_serves_the_checkpoint_itself(engine: str, standin: Image, tmp_path: Path) -> None:
    model = checkpoints.gemma(tmp_path / "model")
    repository = tmp_path / "repository"
    source = image.script("all_models/llmapi/tensorrt_llm")
    (repository / "gemma" / "1").mkdir(parents=True)
    code = (source / "1" / "model.py").read_text()  # without what forge changes in its copy, nothing streams
    assert "sampling, streaming)" in code
    config = (source / "config.pbtxt").read_text().replace('name: "tensorrt_llm"', 'name: "gemma"')
    (repository / "gemma" / "config.pbtxt").write_text(config)
    (repository / "gemma" / "1" / "model.py").write_text(code.replace("sampling, streaming)", "sampling, streaming=streaming)"))
    stated = "model: /forge/model\nmax_seq_len: 100\ntriton_config:\n  max_batch_size: 0\n  decoupled: true\n"
    (repository / "gemma" / "1" / "model.yaml").write_text(stated)
    with server(engine, standin, repository, "gemma", model=model) as ports:
        request = Request("gemma", "Why?", 12, temperature=0.0)
        pieces = ask(ports, request)
        assert len(pieces) > 1
        assert "".join(pieces) == checkpoints.greedy(model, "Why?", 12)
        assert "".join(ask(ports, replace(request, stream=False))) == "".join(pieces)
        with pytest.raises(InferenceError, match=r"exceeds max_seq_len \(100\)"):
            ask(ports, replace(request, max_tokens=100))


def test_its_scripts_and_their_flags_can_be_looked_up(engine: str, standin: Image, tmp_path: Path) -> None:
    forge = Forge(tmp_path, environ(engine))
    listed = {each.called for each in forge.toolchain(standin.reference).scripts}
    assert {'trtllm.script(toolchain, "gemma")', 'trtllm.tool(toolchain, "medusa/convert_checkpoint.py")'} <= listed
    (script,) = forge.toolchain(standin.reference, "gemma").scripts
    assert script.asked
    assert "--weight_only_precision" in {name for flag in script.flags for name in flag.names}
