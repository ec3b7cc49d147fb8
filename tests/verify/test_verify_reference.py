"""The reference run, in whatever Python has transformers, says what transformers itself generates there."""

import json
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_checkpoints
import verify_kit
from forge.verify.reciter import OwnPython
from forge.verify.reference import SCRIPT, Asked, Job
from tiny_checkpoints import torch, transformers

# What transformers is about to take away is an error here, months before it is gone.
STRICT = ("-W", "error::FutureWarning", "-W", "error::DeprecationWarning:transformers")
APART = (sys.executable, *STRICT, "-I", str(SCRIPT))
TEXT = "The recipe says what the build needs"


def apart(*words: str) -> None:
    """As forge has it: in a process of its own, which takes seconds to import what this one has."""
    done = subprocess.run((*APART, *words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def here(*words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.simplefilter("error", FutureWarning)
        warnings.filterwarnings("error", category=DeprecationWarning, module="transformers")
        runpy.run_path(str(SCRIPT))["main"](*words)


def recite(folder: Path, scratch: Path, run: Callable[..., None] = here, **limits: int) -> Any:
    job, out = scratch / "job.json", scratch / "out.json"
    prompt: dict[str, object] = {"name": "short", "text": TEXT, "messages": []}
    asked = {
        "checkpoint": "k",
        "prompts_digest": "p",
        "prompts": [prompt],
        "max_tokens": 12,
        "max_input_len": 0,
        "max_seq_len": 0,
        **limits,
    }
    job.write_text(json.dumps(asked), encoding="utf-8")
    run(str(folder), str(job), str(out))
    return json.loads(out.read_text(encoding="utf-8"))["transcripts"][0]


def other(folder: Path, make: Callable[..., Any], *limits: int) -> Any:
    """A checkpoint of another kind with the kit's tokenizer."""
    verify_kit.checkpoint(folder)
    (folder / "model.safetensors").unlink()
    return make(folder, *limits, vocab_size=1500)


@pytest.mark.slow
def test_a_decoder_recites_what_transformers_generates(tmp_path: Path) -> None:
    folder = verify_kit.checkpoint(tmp_path / "checkpoint")
    said = recite(folder, tmp_path, apart)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    assert len(said["tokens"]) == 12
    assert said["tokens"] == tiny_checkpoints.says(model, said["ids"], 12)


@pytest.mark.slow
def test_each_prompt_is_told_when_it_is_asked(tmp_path: Path) -> None:
    folder, told = verify_kit.checkpoint(tmp_path / "checkpoint"), list[str]()
    asked = (Asked("one", TEXT), Asked("zw\u00f6lf", TEXT), Asked("long", TEXT * 9))
    said = OwnPython(os.environ).recite(folder, Job("k", "p", asked, 2, max_input_len=20), told.append)
    assert [each.name for each in said.transcripts] == ["one", "zw\u00f6lf"]
    assert [line for line in told if " of " in line] == ["prompt 1 of 2: 'one'", "prompt 2 of 2: 'zw\\xf6lf'"]


@pytest.mark.slow
def test_an_encoder_decoder_recites_what_transformers_generates(tmp_path: Path) -> None:
    model = other(tmp_path / "checkpoint", tiny_checkpoints.t5)
    said = recite(tmp_path / "checkpoint", tmp_path, apart)
    ids = torch.tensor([said["ids"]])
    with torch.no_grad():
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0, 1:].tolist()
    assert said["tokens"] == [token for token in wanted if token != 1]
    assert said["tokens"]
    # The prompt is the encoder's: max_seq_len is the decoder's alone, which begins with one token.
    assert recite(tmp_path / "checkpoint", tmp_path, max_input_len=len(said["ids"]), max_seq_len=13) == said


@pytest.mark.slow
@pytest.mark.parametrize("limit", [8, 12], ids=["the prompt is beyond", "the answer crosses"])
def test_a_phi3_recites_what_transformers_generates_across_its_short_factors(tmp_path: Path, limit: int) -> None:
    model = other(tmp_path / "checkpoint", tiny_checkpoints.phi3, limit)
    said = recite(tmp_path / "checkpoint", tmp_path)
    assert len(said["ids"]) < limit + 12
    assert said["tokens"] == tiny_checkpoints.says(model, said["ids"], 12)


@pytest.mark.slow
def test_a_checkpoints_own_penalty_is_not_recited(tmp_path: Path) -> None:
    folder = verify_kit.checkpoint(tmp_path / "checkpoint")
    plain = recite(folder, tmp_path)["tokens"]
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 9.0, "eos_token_id": 1}))
    assert recite(folder, tmp_path)["tokens"] == plain
