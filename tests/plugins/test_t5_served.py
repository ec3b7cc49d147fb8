"""A T5 with `runtime.packages`: planned, built, published, served by a real Triton through transformers, and verified."""

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import tiny_checkpoints
import verify_kit
from forge.api.forge import Forge
from forge.api.wiring import Wiring
from forge.build.builder import Tools
from forge.machine.environments import PrivateEnvironments
from forge.schema.values import Environment
from forge.schema.wheels import NO_HASHES, Hashes
from forge.verify.verify import VerifyOptions
from patience import free_ports
from tiny_checkpoints import torch, transformers
from triton_fixture import Serving

RECIPE = """
name = "t5"
family = "t5"

[source]
path = "checkpoint"

[runtime]
kind = "twin"
packages = ["transformers", "torch"]

[convert]
dtype = "float32"

[build]
max_batch_size = 4
max_input_len = 64
max_seq_len = 40
max_beam_width = 3

[verify]
max_tokens = 12
"""
PROMPT = "The recipe says what the build needs, and what the store holds already is not made again"


class Installed(PrivateEnvironments):
    """Makes an environment whose packages are those of the tests' own Python: gigabytes are not fetched for a test."""

    def __init__(self, serving: Serving) -> None:
        super().__init__(dict(os.environ))
        self._serving = serving

    def make(
        self, environment: Environment, interpreter: str, into: Path, log: Callable[[str], None], hashes: Hashes = NO_HASHES
    ) -> None:
        assert environment.packages == ("torch", "transformers")
        into.rmdir()
        self._serving.with_own_packages(into)


class Lent(Wiring):
    """The real wiring, but for how environments are made."""

    def __init__(self, home: Path, serving: Serving) -> None:
        super().__init__(home, dict(os.environ), lambda _: None)
        self._serving = serving

    @cached_property
    def tools(self) -> Tools:
        return replace(super().tools, environments=Installed(self._serving))


@pytest.mark.slow
def test_a_t5_is_served_as_transformers_generates_it(serving: Serving, tmp_path: Path) -> None:
    checkpoint = verify_kit.checkpoint(tmp_path / "checkpoint")
    (checkpoint / "model.safetensors").unlink()
    model: Any = tiny_checkpoints.t5(checkpoint, vocab_size=1500)
    (tmp_path / "t5.toml").write_text(RECIPE, encoding="utf-8")
    home = tmp_path / "home"
    shop = Forge(home, dict(os.environ), wiring=Lent(home, serving))
    built = shop.build([tmp_path / "t5.toml"], repository=tmp_path / "repository")
    running = shop.serve(built.repository, free_ports())
    try:
        target = shop.target("t5", built.repository)
        asked = replace(target.request(PROMPT), max_tokens=12, top_k=1)
        streamed = "".join(chunk.text for chunk in shop.generate(target.address, asked))
        whole = "".join(chunk.text for chunk in shop.generate(target.address, replace(asked, stream=False)))
        report = shop.verify("t5", built.repository, VerifyOptions())
    finally:
        shop.stop(running)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad():
        said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0, 1:]
    assert whole == streamed == tokenizer.decode(said, skip_special_tokens=True)
    assert whole.strip()
    assert report.passed, report.faults
