"""A tiny random model with a tokenizer, built and served once for all tests that only need something that speaks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fakes import tiny_adapter
from forge.api.forge import Forge
from forge.serve.lookup import Target
from patience import free_ports
from skeleton_kit import TOKENIZERS, lay

RECIPE = """
name = "tiny"
family = "llama"

[source]
path = "checkpoint"

[runtime]
kind = "twin"

[build]
max_batch_size = 8
max_input_len = 128
max_seq_len = 256
max_beam_width = 4

[serve]
stream = true

[sampling]
max_tokens = 12
top_k = 1
"""
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)


QUERIES = (64, 48)
"""Outputs and inputs of its projection of queries."""


@dataclass(frozen=True)
class Tiny:
    """``model`` is transformers' own, ``target`` the served one; ``checkpoint`` is where both come from."""

    target: Target
    recipe: Path
    checkpoint: Path
    model: Any

    @property
    def address(self) -> str:
        return self.target.address


def checkpoint(folder: Path) -> Any:
    """A random Llama of 330 byte-level tokens in ``folder``; transformers' model of it comes back."""
    import tiny_checkpoints  # torch and transformers: sessions that need no tiny model do not wait for them

    tokenizer = TOKENIZERS["byte_level"]
    begin, end = (tokenizer.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>"))
    folder.mkdir(parents=True)
    model = tiny_checkpoints.make(
        "llama", folder, vocab_size=tokenizer.get_vocab_size(), bos_token_id=begin, eos_token_id=end, pad_token_id=end
    )
    lay(folder, "byte_level")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return model


def adapter(folder: Path, module: str = "model.layers.0.self_attn.q_proj", r: int = 4) -> None:
    """A LoRA adapter over one module of that checkpoint, which changes nothing."""
    folder.mkdir(parents=True)
    for name, content in tiny_adapter(r, module, QUERIES).items():
        (folder / name).write_bytes(content)


@pytest.fixture(scope="session")
def tiny(shop: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    """The recipe, the checkpoint and a real Triton that serves it; greedy unless asked otherwise."""
    place = tmp_path_factory.mktemp("tiny")
    recipe = place / "tiny.toml"
    recipe.write_text(RECIPE)
    model = checkpoint(place / "checkpoint")
    built = shop.build([recipe], repository=place / "repository")
    running = shop.serve(built.repository, free_ports(), restart=False)
    yield Tiny(shop.target("tiny", built.repository), recipe, place / "checkpoint", model)
    shop.stop(running)
