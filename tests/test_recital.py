"""The recital, which runs in whatever Python has transformers, says what transformers itself generates there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny_checkpoints
import verify_kit
from forge.verifying.recitals import SCRIPT
from tiny_checkpoints import torch, transformers

# What transformers is about to take away is an error here, months before it is gone.
STRICT = ("-W", "error::FutureWarning", "-W", "error::DeprecationWarning:transformers")
TEXT = "The recipe says what the build needs"


def recite(folder: Path, scratch: Path) -> Any:
    job, out = scratch / "job.json", scratch / "out.json"
    prompt: dict[str, object] = {"name": "short", "text": TEXT, "messages": []}
    asked = {
        "checkpoint": "k",
        "prompts_digest": "p",
        "prompts": [prompt],
        "max_tokens": 12,
        "max_input_len": 0,
        "max_seq_len": 0,
    }
    job.write_text(json.dumps(asked), encoding="utf-8")
    argv = (sys.executable, *STRICT, "-I", str(SCRIPT), str(folder), str(job), str(out))
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text(encoding="utf-8"))["transcripts"][0]


def encoder_decoder(folder: Path) -> Any:
    """A random T5 with the kit's tokenizer."""
    verify_kit.checkpoint(folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=1500,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.slow
def test_a_decoder_recites_what_transformers_generates(tmp_path: Path) -> None:
    folder = verify_kit.checkpoint(tmp_path / "checkpoint")
    said = recite(folder, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    assert len(said["tokens"]) == 12
    assert said["tokens"] == tiny_checkpoints.says(model, said["ids"], 12)


@pytest.mark.slow
def test_an_encoder_decoder_recites_what_transformers_generates(tmp_path: Path) -> None:
    model = encoder_decoder(tmp_path / "checkpoint")
    said = recite(tmp_path / "checkpoint", tmp_path)
    ids = torch.tensor([said["ids"]])
    with torch.no_grad():
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0, 1:].tolist()
    assert said["tokens"] == [token for token in wanted if token != 1]
    assert said["tokens"]
