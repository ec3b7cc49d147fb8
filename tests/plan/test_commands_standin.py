"""Every family's and variant's commands, run by the stand-in's tools on tiny checkpoints: the promised files are there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from forge.plan.families import Family
from forge.schema.values import Checkpoint, Command, Engine, Recipe
from forge.trtllm.image_table import toolchain
from standin import checkpoints
from standin.fixtures import Said, run_script, trtllm_build
from standin.image import script

LLAMA = Checkpoint({"architectures": ["LlamaForCausalLM"]})
BUILD = {"max_batch_size": 2, "max_input_len": 256, "max_seq_len": 512}
Made = Callable[[Path], Path]


@dataclass(frozen=True)
class Bench:
    """Real folders behind the constant paths."""

    places: Mapping[str, Path]

    def run(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            said = self._run(command.argv)
            assert said.code == 0, said.err

    def _run(self, argv: tuple[str, ...]) -> Said:
        words = [self._real(word) for word in argv]
        if argv[0] == "trtllm-build":
            return trtllm_build(*words[1:])
        return run_script(script(argv[1].removeprefix("/app/")), *words[2:])

    def _real(self, word: str) -> str:
        _, forge, rest = word.partition("/forge/")
        name, _, below = rest.partition("/")
        return str(self.places[name] / below) if forge and name in self.places else word


def _made(recipe: Recipe, checkpoint: Checkpoint, folder: Path, given: Mapping[str, Path]) -> tuple[Engine, ...]:
    """Convert and build in ``folder``; the engines, all of whose files are there."""
    family = Family.of(recipe, checkpoint)
    tools = toolchain("25.08")
    Bench({**given, "out": folder / "checkpoint"}).run(family.convert_commands(tools))
    Bench({"checkpoint": folder / "checkpoint", "out": folder / "engine"}).run(family.build_commands(tools))
    ranks = [f"rank{rank}" for rank in range(recipe.convert.tp)]
    for engine in family.engines():
        for stage, suffix in (("checkpoint", "safetensors"), ("engine", "engine")):
            held = {file.name for file in (folder / stage / engine.folder).iterdir()}
            assert {"config.json", *(f"{rank}.{suffix}" for rank in ranks)} <= held
    return family.engines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "second"),
    [
        ("lookahead", None),
        ("medusa", checkpoints.medusa_heads),
        ("eagle", checkpoints.draft),
        ("redrafter", checkpoints.draft),
        ("draft-target", checkpoints.llama),
    ],
)
def test_a_variants_commands_leave_what_they_promise(variant: str, second: Made | None, tmp_path: Path) -> None:
    told = {
        "name": "m",
        "source": {"path": "."},
        "variant": variant,
        "convert": {"dtype": "float32", "tp": 2},
        "build": BUILD,
    }
    given = {"model": checkpoints.llama(tmp_path / "model")}
    if second is not None:
        given["draft"] = second(tmp_path / "draft")
    assert _made(msgspec.convert(told, Recipe), LLAMA, tmp_path, given)


@pytest.mark.slow
def test_t5s_commands_leave_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    told = {"name": "m", "source": {"path": "."}, "convert": {"dtype": "float32"}, "build": BUILD}
    checkpoint = Checkpoint({"architectures": ["T5ForConditionalGeneration"]})
    engines = _made(msgspec.convert(told, Recipe), checkpoint, tmp_path, {"model": checkpoints.t5(tmp_path / "model")})
    assert [engine.folder for engine in engines] == ["decoder", "encoder"]


@pytest.mark.slow
def test_a_quantization_is_calibrated_on_the_texts_that_are_mounted(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    table = {"dtype": "float32", "quantization": "fp8", "calibration": {"path": "texts", "size": 2}}
    told = {"name": "m", "source": {"path": "."}, "convert": table, "build": BUILD}
    given = {"model": checkpoints.llama(tmp_path / "model"), "calibration": texts}
    assert _made(msgspec.convert(told, Recipe), LLAMA, tmp_path, given) == (Engine(),)
