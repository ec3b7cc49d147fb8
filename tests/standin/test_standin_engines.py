"""Engines of the stand-in that are not plain Llamas: a Phi-3, a T5 of two engines, and weights that a quantization has rounded.

Each goes from its checkpoint through the stand-in's scripts to a real Triton, and says what transformers says of what it holds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import tiny_checkpoints
import verify_kit
from forge.verify.judge import Outcome, Stage
from forge.verify.verify import VerifyOptions
from patience import free_ports
from standin.inside import Insider, lay_backends
from triton_fixture import Serving

pytestmark = pytest.mark.slow
RECIPE = """
name = "{name}"
family = "{family}"
[source]
path = "{name}"
[runtime]
kind = "engine"
gpus = "none"
[convert]
dtype = "float32"
{convert}
[build]
max_batch_size = 4
max_input_len = 64
max_seq_len = 80
[serve]
instances = 1
[sampling]
max_tokens = 12
[verify]
prompts = "prompts.txt"
max_tokens = 12
"""
PROMPT = "The recipe says what the build needs"
MADE = {
    "phi": ("phi", ""),
    "t5": ("t5", ""),
    "four": ("llama", 'quantization = "int4_weight_only"'),
}
"""Recipe -> its family, and what [convert] says besides."""


@dataclass(frozen=True)
class Bench:
    """One server on all of them."""

    insider: Insider
    folder: Path

    def said(self, name: str, *, stream: bool = True) -> str:
        shop = self.insider.shop
        target = shop.target(name, self.folder / "models")
        asked = replace(target.request(PROMPT), max_tokens=12, top_k=1, stream=stream)
        return "".join(chunk.text for chunk in shop.generate(target.address, asked))

    def transformers(self, name: str, kind: str) -> str:
        """What transformers says of the checkpoint."""
        transformers: Any = tiny_checkpoints.transformers
        torch: Any = tiny_checkpoints.torch
        place = str(self.folder / name)
        tokenizer, model = transformers.AutoTokenizer.from_pretrained(place), getattr(transformers, kind).from_pretrained(place)
        ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0]
        return str(tokenizer.decode(out[1 if model.config.is_encoder_decoder else ids.shape[1] :], skip_special_tokens=True))


def lay(folder: Path, family: str) -> None:
    """A random model of 1500 tokens under a tokenizer of as many."""
    verify_kit.checkpoint(folder)
    if family == "llama":
        return
    (folder / "model.safetensors").unlink()
    if family == "t5":
        tiny_checkpoints.t5(folder, vocab_size=1500)
    else:
        tiny_checkpoints.phi3(folder, 128, vocab_size=1500)


@pytest.fixture(scope="module")
def bench(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("engines")
    for name, (family, convert) in MADE.items():
        lay(folder / name, family)
        (folder / f"{name}.toml").write_text(RECIPE.format(name=name, family=family, convert=convert))
    (folder / "prompts.txt").write_text(f"{PROMPT}\nWhat is in the store?\n")
    environment = serving.with_own_packages(folder / "environment").environment
    insider = Insider(folder, environment, lay_backends(environment, folder / "backends"))
    built = insider.shop.build([folder / f"{name}.toml" for name in MADE], repository=folder / "models")
    running = insider.shop.serve(built.repository, free_ports(), restart=False)
    yield Bench(insider, folder)
    insider.shop.stop(running)


@pytest.mark.parametrize(("name", "kind"), [("phi", "AutoModelForCausalLM"), ("t5", "AutoModelForSeq2SeqLM")])
def test_what_is_built_says_what_its_checkpoint_says(bench: Bench, name: str, kind: str) -> None:
    wanted = bench.transformers(name, kind)
    assert wanted.strip()
    assert bench.said(name) == bench.said(name, stream=False) == wanted


def test_rounded_weights_answer_otherwise_and_no_other_stage_fails(bench: Bench) -> None:
    assert bench.said("four") != bench.transformers("four", "AutoModelForCausalLM")
    report = bench.insider.shop.verify("four", bench.folder / "models", VerifyOptions(streaming=False))
    engine = [each.outcome for each in report.verdicts if each.stage is Stage.ENGINE]
    assert set(engine) != {Outcome.SAME}, "it was asked of the engine that is served"
    others = {each.outcome for each in report.verdicts if each.stage is not Stage.ENGINE}
    assert others == {Outcome.SAME}
