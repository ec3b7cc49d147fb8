"""docs/from-notes.md says what is true: its recipe is planned as an engine and served as a twin by the commands that it shows,
its keys are keys of a recipe, and every command of its table can be typed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_served
from documented import lines, wrong
from fake_wiring import World
from fakes import LLAMA
from forge.plan.steps import Run, Step
from forge.recipe import reader, shipped
from patience import free_ports
from recipe_keys import keys

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "from-notes.md").read_text(encoding="utf-8")
(RECIPE,) = re.findall(r'^```toml title="my-gemma.toml"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\$ (.+)$", PAGE, re.MULTILINE)
TABLE = PAGE.partition("## Line by line")[2]


def test_the_notes_recipe_is_an_engine_with_the_notes_figures(tmp_path: Path, world: World) -> None:
    (tmp_path / "my-gemma.toml").write_text(RECIPE)
    config = {**LLAMA, "architectures": ["GemmaForCausalLM"], "model_type": "gemma"}
    world.origin.files["config.json"] = json.dumps(config).encode()
    entry = world.shop(tmp_path / "home").plan([tmp_path / "my-gemma.toml"]).entries[0]
    runs = [step.action for step in _below(entry.step) if isinstance(step.action, Run)]
    commands = [" ".join(command.argv) for run in runs for command in run.commands]
    (convert,) = {command for command in commands if "convert_checkpoint.py" in command}
    (build,) = {command for command in commands if command.startswith("trtllm-build")}
    assert "--ckpt-type hf" in convert
    for flag in ("--dtype bfloat16", "--world-size 1"):
        assert flag in convert
    noted = ("--max_batch_size 8", "--max_input_len 3000", "--max_seq_len 4096", "--max_beam_width 1")
    assert all(flag in build for flag in noted)
    assert "--gemm_plugin" in build


def _below(step: Step) -> tuple[Step, ...]:
    return (*(each for _, need in step.needs for each in _below(need)), step)


def test_every_key_of_the_table_is_one_of_a_recipe() -> None:
    known = {key.path for key in keys()}
    named = set(re.findall(r"`((?:source|convert|build|serve|sampling)\.[\w.]+)", TABLE))
    assert len(named) > 15
    assert named - known == set()
    for text in re.findall(r"`((?:build|convert|serve)\.[\w.]+ = \S+)`", TABLE):
        table, _, stated = text.partition(".")
        reader.read(f'name = "x"\n[source]\nhub = "a/b"\n[{table}]\n{stated}\n', "page")


def test_every_command_of_the_page_can_be_typed() -> None:
    shown = lines(DOCS / "from-notes.md")
    assert len(shown) > 25
    assert {line: fault for line in shown if (fault := wrong(line))} == {}
    assert set(re.findall(r"--example ([\w.-]+)", PAGE)) <= set(shipped.names())


def test_what_notes_speak_of_is_there() -> None:
    wanted = (
        *("scripts/", "checkpoints/", "engines/", "fill_config.sh", "fill_template.py", "gemma-gly-preprocessing"),
        *("too big for 4090", "seeds", "beams", "instance_group", "dynamic batching", "inflight batching"),
        *("speculative decoding", "genai-perf", "perf_analyzer"),
    )
    assert [word for word in wanted if word not in TABLE] == []


@pytest.mark.slow
def test_the_commands_serve_the_notes_recipe_as_a_twin(tmp_path: Path, home: Path, serving: object) -> None:
    """The page's commands, typed one after the other; a tiny model stands in the place of Gemma, the CPU in that of the GPU."""
    tiny_served.checkpoint(tmp_path / "checkpoint")
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    text = RECIPE.replace('hub = "google/gemma-2b-it"', 'path = "checkpoint"').replace('kind = "engine"', 'kind = "twin"')
    (tmp_path / "my-gemma.toml").write_text(text.replace("max_tokens = 512", "max_tokens = 12"))
    ports = free_ports()
    at = f" --http-port {ports.http} --grpc-port {ports.grpc} --metrics-port {ports.metrics}"
    said: dict[str, str] = {}
    try:
        for command in COMMANDS:
            typed = command + (at if command.startswith("forge serve") else "")
            said[command.split()[1]] = _typed(typed, tmp_path, home)
    finally:
        _typed("forge stop", tmp_path, home, check=False)
    assert "gemma-gly: entry" in said["plan"]
    assert "gemma-gly-tensorrt_llm_bls" in said["serve"]
    assert "gemma-gly" in said["list"]
    assert said["generate"].strip()
    assert "OUTPUT_TOKENS_PER_S" in said["bench"]
    (tree,) = re.findall(r"^```text\n(model-repository/.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    folders = re.findall(r"(?<=\s)[\w/-]+(?=/\s)", tree)
    assert len(folders) == 7
    assert all((tmp_path / "model-repository" / folder).is_dir() for folder in folders)


def _typed(command: str, place: Path, home: Path, *, check: bool = True) -> str:
    environ = {**os.environ, "FORGE_HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], cwd=place, env=environ, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
