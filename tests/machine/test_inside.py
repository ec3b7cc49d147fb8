"""The local executor: forge inside NVIDIA's container, with stand-ins for its programs below a folder of the test's."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pytest

from fake_wiring import FakeWiring, World
from fakes import LLAMA, tiny_checkpoint
from forge.api.forge import Forge
from forge.errors import HostError, LockError
from forge.machine.containers import Inside
from forge.machine.inside import Here
from forge.machine.mirror import mirror
from forge.repository import config as repository
from forge.schema.values import LOCAL, Ports, Requirements
from forge.settings import Executor, Settings
from standin import checkpoints, image

HELP = """usage: {name} [-h] ...

options:
  --model_dir MODEL_DIR
  --output_dir OUTPUT_DIR
  --checkpoint_dir CHECKPOINT_DIR
  --dtype {{auto,float16}}
  --tp_size N
  --pp_size N
  --workers N
  --max_batch_size N
  --max_input_len N
  --max_seq_len N
  --max_beam_width N
  --gemm_plugin {{auto,disable}}
  --ckpt-type {{hf}}
  --model-dir MODEL_DIR
  --output-model-dir OUTPUT_DIR
  --world-size N
"""
PROGRAM = """import json, os, pathlib, sys
if "--help" in sys.argv:
    print({help!r})
    raise SystemExit
import beside
told = dict(zip((word.lstrip("-").replace("-", "_") for word in sys.argv[1:]), sys.argv[2:]))
out = pathlib.Path(told.get("output_dir") or told["output_model_dir"])
given = pathlib.Path(told.get("model_dir") or told["checkpoint_dir"])
assert (given / "config.json").is_file(), given
up = pathlib.Path(__file__).parent / ".." / "shared.txt"
said = dict(beside=beside.NAME, script=__file__, up=up.read_text(), secret=os.environ.get("AWS_SECRET_ACCESS_KEY"),
            gpus=os.environ.get("CUDA_VISIBLE_DEVICES"), linked=os.environ.get("LD_EXTRA"))
(out / "config.json").write_text(json.dumps(said))
(out / "{file}").write_bytes(b"x")
"""
CALL = "\ndef unused(GemmaConfig, a, b, quant_config): return GemmaConfig.from_hugging_face(a, b, quant_config)\n"
RECIPE = """
name = "tiny"
family = "{family}"
[source]
hub = "acme/tiny"
[runtime]
kind = "engine"
gpus = "none"
"""


def executable(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def laid(root: Path, packages: Mapping[str, str]) -> Path:
    """A folder as NVIDIA's container would be: scripts, skeletons, Triton, and a Python that has TensorRT-LLM."""
    site = root / "site"
    for name, version in packages.items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{name}/__init__.py,sha256=abc,3\n")
    python = f'#!/bin/sh\nPYTHONPATH="{site}" exec {sys.executable} -S "$@"\n'
    executable(root / "usr" / "bin" / "python3", python)
    executable(root / "opt" / "tritonserver" / "bin" / "tritonserver", "#!/bin/sh\n")
    for family in ("llama", "gemma"):
        folder = root / "app" / "examples" / "models" / "core" / family
        folder.mkdir(parents=True)
        script = PROGRAM.format(help=HELP.format(name="convert"), file="rank0.safetensors") + CALL
        (folder / "convert_checkpoint.py").write_text(script)
        (folder / "beside.py").write_text("NAME = 'the sibling'\n")
    (root / "app" / "examples" / "models" / "core" / "shared.txt").write_text("one folder up")
    build = root / "lib" / "build.py"
    build.parent.mkdir()
    build.write_text(PROGRAM.format(help=HELP.format(name="trtllm-build"), file="rank0.engine"))
    (build.parent / "beside.py").write_text("NAME = 'beside the builder'\n")
    (root / "shared.txt").write_text("one folder up")
    executable(root / "usr" / "bin" / "trtllm-build", f'#!/bin/sh\nexec {root}/usr/bin/python3 {build} "$@"\n')
    for text in repository.skeletons():
        file = root / "app" / "all_models" / "inflight_batcher_llm" / text.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.content)
    return root


class InsideWiring(FakeWiring):
    """The wiring of a forge that runs below ``root``; the container engine is there, and must not be asked."""

    def __init__(self, home: Path, world: World, environ: Mapping[str, str], root: Path) -> None:
        super().__init__(home, world)
        self._seen = environ
        self._root = root

    @cached_property
    def here(self) -> Inside:
        return Here(self._seen, root=self._root)


PACKAGES = {"tensorrt_llm": "0.21.0", "sentencepiece": "0.2.0"}


class Inhabitant:
    """Somebody inside the container."""

    def __init__(self, folder: Path, packages: Mapping[str, str] = PACKAGES) -> None:
        self.root = laid(folder / "root", packages)
        self.world = World()
        self.world.containers.here = False
        self.folder = folder
        path = f"{self.root}/usr/bin:{os.environ.get('PATH', os.defpath)}"
        self.environ = {"PATH": path, "AWS_SECRET_ACCESS_KEY": "secret", "LD_EXTRA": "from the image"}
        self.recipe = folder / "tiny.toml"
        self.write()

    def write(self, more: str = "", family: str = "llama") -> None:
        self.recipe.write_text(RECIPE.format(family=family) + more)

    def shop(self, executor: Executor | None = None) -> Forge:
        wiring = InsideWiring(self.folder / "home", self.world, self.environ, self.root)
        return Forge(self.folder / "home", {}, self.world.events.append, wiring, settings=Settings(executor=executor))

    def engine(self) -> dict[str, object]:
        self.shop().build([self.recipe], repository=self.folder / "models")
        file = self.folder / "models" / "_assets" / "tiny" / "engines" / "config.json"
        said: dict[str, object] = json.loads(file.read_text())
        return said

    def notes(self) -> str:
        return "\n".join(event.text for event in self.world.events)


@pytest.fixture
def inside(tmp_path: Path) -> Inhabitant:
    return Inhabitant(tmp_path)


def test_programs_here_build_an_engine_and_no_container_is_asked(inside: Inhabitant) -> None:
    said = inside.engine()
    assert said["beside"] == "beside the builder"
    assert (said["secret"], said["linked"], said["gpus"]) == (None, "from the image", "")
    assert inside.world.containers.ran == []
    assert inside.world.containers.pulled == 0
    config = (inside.folder / "models" / "tensorrt_llm" / "config.pbtxt").read_text()
    assert f"{inside.folder}/models/_assets/tiny/engines" in config


def test_it_is_served_by_the_triton_that_is_here(inside: Inhabitant) -> None:
    shop = inside.shop()
    shop.build([inside.recipe], repository=inside.folder / "models")
    launched = shop.launch(inside.folder / "models", Ports())
    assert (launched.image, launched.environment, launched.triton) == ("", None, "/opt/tritonserver")
    assert launched.engines == ("tensorrt_llm",)


def test_llmapis_model_yaml_leads_to_a_checkpoint_that_moved(inside: Inhabitant) -> None:
    for path, text in inside.world.containers.llmapi.items():
        file = inside.root / "app" / "all_models" / "llmapi" / "tensorrt_llm" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    inside.recipe.write_text(inside.recipe.read_text().replace('"engine"', '"llmapi"').replace('family = "llama"', ""))
    shop, models = inside.shop(), inside.folder / 'models of "café"'
    shop.build([inside.recipe], repository=models)
    again = shop.build([inside.recipe], repository=models)
    assert (again.linked, again.copied) == (0, 0)
    assert _checkpoint(models) == models / "_assets" / "tiny" / "model"
    moved = models.rename(models.with_name("moved"))
    shop.build([inside.recipe], repository=moved)
    assert _checkpoint(moved) == moved / "_assets" / "tiny" / "model"


def _checkpoint(repository: Path) -> Path:
    return Path(json.loads((repository / "tensorrt_llm" / "1" / "model.yaml").read_text())["model"])


def test_a_second_build_runs_nothing_and_an_upgrade_runs_all(inside: Inhabitant) -> None:
    shop = inside.shop()
    shop.build([inside.recipe], repository=inside.folder / "models")
    assert all(step.held for step in inside.shop().outlook(inside.shop().plan([inside.recipe])))
    script = inside.root / "app/examples/models/core/llama/convert_checkpoint.py"
    script.write_text(script.read_text() + "# fixed\n")
    missing = [step.name for step in shop.outlook(inside.shop().plan([inside.recipe])) if not step.held]
    assert missing == ["image", "toolchain", "tiny: checkpoint", "tiny: engine", "tiny: entry"]


def test_a_patched_script_runs_as_a_copy_finding_its_siblings(inside: Inhabitant) -> None:
    inside.world.origin.files = tiny_checkpoint({**LLAMA, "architectures": ["GemmaForCausalLM"]})
    inside.write(family="gemma")
    original = (inside.root / "app/examples/models/core/gemma/convert_checkpoint.py").read_text()
    shop = inside.shop()
    shop.build([inside.recipe], repository=inside.folder / "models")
    (key,) = [step.key for step in shop.plan([inside.recipe]).steps if step.name == "tiny: checkpoint"]
    held = shop.store.find(key)
    assert held is not None
    said = json.loads((held.path / "config.json").read_text())
    assert (said["beside"], said["up"]) == ("the sibling", "one folder up")
    assert not said["script"].startswith(str(inside.root))
    assert (inside.root / "app/examples/models/core/gemma/convert_checkpoint.py").read_text() == original
    assert "gets quant_config by name" in inside.notes()


def test_a_family_requirement_is_asked_for_first_and_never_installed(tmp_path: Path) -> None:
    inside = Inhabitant(tmp_path, {"tensorrt_llm": "0.21.0"})
    with pytest.raises(HostError, match=r"lacks sentencepiece[\s\S]*-m pip install 'sentencepiece'"):
        inside.engine()
    assert inside.world.origin.fetches == 0


def test_a_requirement_counts_with_its_versions(inside: Inhabitant) -> None:
    here = Here(inside.environ, root=inside.root)
    assert here.lacking(Requirements(pip=("sentencepiece>=0.1",))) == ()
    (problem,) = here.lacking(Requirements(pip=("sentencepiece>=0.3,<1",)))
    assert "'sentencepiece>=0.3,<1'" in problem.hint


def test_docker_can_be_said_where_this_is_nvidias_container(inside: Inhabitant) -> None:
    inside.world.containers.here = True
    assert inside.shop().resolve(inside.recipe).facts.toolchain.image == LOCAL
    assert inside.shop("docker").resolve(inside.recipe).facts.toolchain.image != LOCAL
    inside.recipe.write_text(RECIPE.format(family="llama") + 'executor = "docker"\n')
    assert inside.shop().resolve(inside.recipe).facts.toolchain.image != LOCAL
    assert inside.shop("local").resolve(inside.recipe).facts.toolchain.image == LOCAL


def test_local_where_no_tensorrt_llm_is_says_what_to_do(inside: Inhabitant, tmp_path: Path) -> None:
    inside.environ["PATH"] = os.defpath
    with pytest.raises(HostError, match="no Python here has TensorRT-LLM"):
        inside.shop("local").plan([inside.recipe])
    assert inside.shop().resolve(inside.recipe).facts.toolchain.image != LOCAL


def test_another_version_than_the_recipes_images_is_said_aloud(tmp_path: Path) -> None:
    inside = Inhabitant(tmp_path, {**PACKAGES, "tensorrt_llm": "0.20.0"})
    inside.shop().plan([inside.recipe])
    assert "taken is the 0.20.0 that is here" in inside.notes()


def test_a_lock_from_outside_is_held_to_the_version(tmp_path: Path) -> None:
    inside = Inhabitant(tmp_path)
    inside.world.containers.here = True
    inside.shop("docker").lock(inside.recipe)
    assert inside.shop().resolve(inside.recipe, locked=True).facts.toolchain.trtllm == "0.21.0"
    other = Inhabitant(tmp_path / "other", {**PACKAGES, "tensorrt_llm": "0.20.0"})
    lock = inside.recipe.with_name("tiny.toml.lock").read_text()
    other.recipe.with_name("tiny.toml.lock").write_text(lock)
    with pytest.raises(LockError, match=r"0\.20\.0 is here"):
        other.shop().resolve(other.recipe, locked=True)


def test_a_broken_promise_is_told_with_the_logs_end(inside: Inhabitant) -> None:
    script = inside.root / "app/examples/models/core/llama/convert_checkpoint.py"
    script.write_text(script.read_text().replace('(out / "config.json").write_text', "print"))
    with pytest.raises(Exception, match=r"ended well and did not write config\.json"):
        inside.engine()


def test_a_mirror_holds_patched_files_beside_links_to_the_rest(tmp_path: Path) -> None:
    root, patched = tmp_path / "root", tmp_path / "patched.py"
    for name in ("app/a/one.py", "app/a/two.py", "app/a/deep/three.py", "app/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    patched.write_text("patched")
    (tmp_path / "scratch").mkdir()
    found = mirror(root, {"/app/a/one.py": patched, "/app/a/deep/three.py": patched}, tmp_path / "scratch")
    assert Path(found["/app/a/one.py"]).read_text() == Path(found["/app/a/deep/three.py"]).read_text() == "patched"
    assert Path(found["/app/a/two.py"]).read_text() == "app/a/two.py"
    assert (tmp_path / "scratch/app/a/deep/../../notes.txt").read_text() == "app/notes.txt"
    assert (root / "app/a/one.py").read_text() == "app/a/one.py"


@pytest.mark.slow
def test_stand_in_scripts_build_a_calibrated_gemma_without_docker(tmp_path: Path) -> None:
    """Real scripts (strict about their flags), a real checkpoint, real texts; the promised files are what they leave."""
    inside = Inhabitant(tmp_path)
    shutil.rmtree(inside.root / "app" / "examples")
    shutil.copytree(image.script("examples"), inside.root / "app" / "examples")
    site = f"{image.library()}:{inside.root}/site"
    executable(inside.root / "usr/bin/python3", f'#!/bin/sh\nPYTHONPATH="{site}" exec {sys.executable} "$@"\n')
    build = image.library() / "tensorrt_llm" / "commands" / "build.py"
    executable(inside.root / "usr/bin/trtllm-build", f'#!/bin/sh\nexec {inside.root}/usr/bin/python3 {build} "$@"\n')
    folder = checkpoints.gemma(tmp_path / "gemma")
    inside.world.origin.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    limits = "[build]\nmax_input_len = 64\nmax_seq_len = 128\n"
    texts = '[convert.calibration]\nhub = "acme/texts"\nsize = 1\n'
    inside.write(f'[convert]\ndtype = "float16"\nquantization = "fp8"\n{texts}{limits}', family="gemma")
    inside.engine()
    engines = inside.folder / "models" / "_assets" / "tiny" / "engines"
    assert {"config.json", "rank0.engine"} <= {file.name for file in engines.iterdir()}
    assert "Calibrated on 1 texts" in inside.notes()
