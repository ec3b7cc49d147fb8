"""A random twin that tests serve while its repository changes, and what a model says when it is asked."""

from collections.abc import Callable, Sequence
from pathlib import Path

import skeleton_kit
import tiny_checkpoints
from forge.api.forge import Forge
from forge.client.types import Request
from forge.schema.values import Role
from forge.serve.lookup import Target


def recipe(folder: Path, name: str, more: str = "", batch: int = 2) -> Path:
    """A random model with a tokenizer of its own; ``more`` is added to the recipe."""
    checkpoint = folder / name
    if not checkpoint.exists():
        checkpoint.mkdir()
        tiny_checkpoints.make("llama", checkpoint, vocab_size=330, num_hidden_layers=2)
        skeleton_kit.lay(checkpoint, "byte_level")
    file = folder / f"{name}.toml"
    limits = f"max_batch_size = {batch}\nmax_input_len = 64\nmax_seq_len = 128\n"
    file.write_text(
        f'name = "{name}"\n[source]\npath = "{name}"\n[runtime]\nkind = "twin"\n[build]\n{limits}[serve]\ninstances = 1\n{more}'
    )
    return file


PLAIN = {"postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls", "ensemble"}


def say(shop: Forge, target: Target, count: int = 8) -> str:
    request = Request(model=target.model.roles[Role.BLS], prompt="Hello world, hello", max_tokens=count, top_k=1)
    return "".join(chunk.text for chunk in shop.generate(target.address, request))


Say = Callable[[Request], str]


def chat(shop: Forge, target: Target, question: str, history: Sequence[tuple[str, str]] = ()) -> str:
    """``question`` in the model's chat template."""
    return shop.templated(target, [*history, ("user", question)])
