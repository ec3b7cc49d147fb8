"""`forge toolchain` lists an image's scripts and their flags, so that an author guesses neither a folder nor a flag."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from fake_containers import FakeContainers
from fake_wiring import World
from forge.api.forge import Forge
from forge.build.executor import Executors
from forge.build.toolbox import Toolbox, toolbox
from forge.cli import main
from forge.errors import ForgeError, HostError, RecipeError, StepError
from forge.machine.inside import Here
from forge.trtllm import scripts
from forge.trtllm.help_texts import Option, options
from forge.trtllm.image_table import toolchain
from standin.inside import VERSION, lay

NVIDIAS = """
import argparse

def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument('--model_dir', type=str, default=None)
    parser.add_argument("--dtype", choices=["auto", "float16"], default="auto",
                        help="The data type for the model weights. "
                        "'auto' is what config.json says")
    parser.add_argument('--use_weight_only', default=False, action="store_true")
    parser.add_argument("--ckpt-type", type=CheckpointType, choices=list(CheckpointType))
    parser.add_argument('prompts', nargs='*')
    return parser.parse_args()

if __name__ == '__main__':
    parse_arguments()
"""
"""In the manner of NVIDIA's conversion scripts."""


class Nothing:
    """Keeps no answers."""

    def recall(self, question: str) -> str | None:
        return None

    def record(self, question: str, answer: str) -> None:
        pass


@dataclass
class Local:
    """The stand-in for NVIDIA's image, as forge sees it from inside: its scripts run for real."""

    here: Here

    def ask(self, program: str = "") -> tuple[Toolbox, list[str]]:
        said: list[str] = []
        return toolbox(
            Executors(FakeContainers(), self.here, Nothing(), "", said.append), "local", program, "", said.append
        ), said


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Local:
    root = lay(tmp_path_factory.mktemp("inside"))
    return Local(Here({"PATH": f"{root}/usr/bin:/usr/bin:/bin"}, root=root))


def test_an_images_scripts_are_listed_as_a_plugin_names_them(local: Local) -> None:
    found, _ = local.ask()
    assert found.trtllm == VERSION
    called = {each.path: each.called for each in found.scripts}
    assert called["/app/examples/models/core/gemma/convert_checkpoint.py"] == 'trtllm.script(toolchain, "gemma")'
    assert called["/app/examples/eagle/convert_checkpoint.py"] == 'trtllm.tool(toolchain, "eagle/convert_checkpoint.py")'
    assert called["/app/examples/quantization/quantize.py"] == 'trtllm.tool(toolchain, "quantization/quantize.py")'


def test_the_flags_of_one_are_those_of_its_help(local: Local) -> None:
    found, said = local.ask("llama")
    (script,) = found.scripts
    flags = {name: flag for flag in script.flags for name in flag.names}
    assert (script.asked, said) == (True, [])
    assert flags["--dtype"].choices == ("auto", "float16", "bfloat16", "float32")
    assert flags["--tp_size"].takes == "TP_SIZE"
    assert flags["--tp_size"].default == "1"
    assert (flags["--use_weight_only"].takes, flags["--use_weight_only"].choices) == ("", ())
    assert "--help" not in flags


def test_a_command_is_asked_as_a_script_is(local: Local) -> None:
    (build,) = local.ask("trtllm-build")[0].scripts
    assert "--max_batch_size" in {name for flag in build.flags for name in flag.names}


def test_a_missing_folder_is_told_with_the_one_meant(local: Local) -> None:
    with pytest.raises(ForgeError, match="no script is named 'gema'") as refused:
        local.ask("gema")
    assert refused.value.hint.startswith("did you mean 'gemma'? there are eagle, enc_dec, gemma, llama, ")


def test_a_script_that_says_nothing_is_told_by_its_source() -> None:
    class Mute(FakeContainers):
        def help_text(self, image: str, argv: tuple[str, ...], gpus: str = "") -> str:
            raise StepError("needs a GPU")

    path = "/app/examples/models/core/acme/convert_checkpoint.py"
    said: list[str] = []
    executors = Executors(Mute(scripts={path: NVIDIAS}), Here({}, root=Path("/nowhere")), Nothing(), "", said.append)
    (script,) = toolbox(executors, "25.08", "acme", "", said.append).scripts
    meaning = "The data type for the model weights. 'auto' is what config.json says"
    assert not script.asked
    assert "needs a GPU" in said[0]
    assert script.flags == (
        Option(("--model_dir",), "MODEL_DIR"),
        Option(("--dtype",), "DTYPE", ("auto", "float16"), "auto", meaning),
        Option(("--use_weight_only",), "", (), "False"),
        Option(("--ckpt-type",), "CKPT_TYPE"),
    )


def test_what_is_no_program_and_what_measures_are_told_apart() -> None:
    tools = toolchain("25.01")
    files = {
        "/app/examples/llama/convert_checkpoint.py": NVIDIAS,
        "/app/examples/run.py": NVIDIAS,
        "/app/examples/utils.py": "x = 1",
    }
    found = scripts.found({path: text.encode() for path, text in files.items()}, tools)
    assert [(each.path, each.maker) for each in found] == [
        ("/app/examples/llama/convert_checkpoint.py", True),
        ("/app/examples/run.py", False),
    ]
    assert found[0].called == 'trtllm.script(toolchain, "llama")'


def test_a_help_text_gives_what_each_option_takes() -> None:
    text = """usage: x.py [-h] [--dtype {a,b}] [-w W]

options:
  -h, --help            show this help message and exit
  --model_dir MODEL_DIR, --model-dir MODEL_DIR
                        where it is (default: None)
  --dtype {a,b}         the kind of numbers that
                        the weights are (default: a)
  -w W, --workers W
  --switch              turns it on (default: False)

examples: none
"""
    assert options(text) == (
        Option(("--model_dir", "--model-dir"), "MODEL_DIR", (), "", "where it is"),
        Option(("--dtype",), "", ("a", "b"), "a", "the kind of numbers that the weights are"),
        Option(("-w", "--workers"), "W"),
        Option(("--switch",), "", (), "False", "turns it on"),
    )


def test_an_absent_image_is_not_pulled_without_a_word(world: World, tmp_path: Path) -> None:
    world.containers.here = False
    with pytest.raises(HostError, match="the image is not here") as refused:
        world.shop(tmp_path).toolchain("25.08")
    assert refused.value.hint == "docker pull nvcr.io/nvidia/tritonserver:25.08-trtllm-python-py3"
    assert world.containers.pulled == 0
    with pytest.raises(RecipeError, match=r"25\.99"):
        world.shop(tmp_path).toolchain("25.99")


def test_an_image_without_scripts_says_so(world: World, tmp_path: Path) -> None:
    with pytest.raises(ForgeError, match="there are no scripts in this image"):
        world.shop(tmp_path).toolchain("25.08")


def test_the_verb_shows_the_scripts_and_the_flags_of_one(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(*_: object, **__: object) -> "Shop":
        return Shop()

    class Shop:
        def toolchain(self, image: str, program: str) -> Toolbox:
            return local.ask(program)[0]

    monkeypatch.setattr(Forge, "here", here)
    run: Callable[..., str] = lambda *words: CliRunner().invoke(main, ["toolchain", "local", *words]).stdout  # noqa: E731
    listed = run()
    assert f"local (TensorRT-LLM {VERSION})" in listed
    assert 'trtllm.tool(toolchain, "medusa/convert_checkpoint.py")' in listed
    shown = run("gemma")
    assert '/app/examples/models/core/gemma/convert_checkpoint.py\nin a plugin: trtllm.script(toolchain, "gemma")\n' in shown
    assert "--ckpt-type" in shown
    document = json.loads(run("gemma", "--json"))
    assert document["scripts"][0]["asked"] is True
    assert "{CheckpointType." in shown  # members of an enum are shown as they are: what is typed for them nobody can tell
    assert "--ckpt-type" in {name for flag in document["scripts"][0]["flags"] for name in flag["names"]}
