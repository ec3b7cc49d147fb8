"""The recipes that forge ships, with the plugins that answer for them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from forge.plan.families import Family, load
from forge.recipe.reader import read
from forge.schema.values import Checkpoint, Command, Recipe, RuntimeKind
from forge.trtllm.image_table import toolchain

ROOT = Path(__file__).parents[2]
SMOLLM2 = ROOT / "recipes" / "smollm2-135m-instruct.toml"
FILES = sorted((ROOT / "recipes").glob("*.toml"))
ENGINES = [file for file in FILES if 'kind = "engine"' in file.read_text(encoding="utf-8")]
SHAPE: Mapping[str, object] = {
    "hidden_size": 64,
    "max_position_embeddings": 32768,
    "num_attention_heads": 8,
    "num_heads": 8,
    "num_hidden_layers": 8,
    "vocab_size": 32000,
}


def recipe(file: Path) -> Recipe:
    return read(file.read_text(encoding="utf-8"), str(file))


def checkpoint(wanted: Recipe) -> Checkpoint:
    """What config.json of the recipe's model would say, in short."""
    served = next(iter(load(wanted.family or "").architectures or ("",)))
    return Checkpoint({**SHAPE, "architectures": [served], "is_encoder_decoder": wanted.family == "t5"})


def family(wanted: Recipe) -> Family:
    return Family.of(wanted, checkpoint(wanted), Checkpoint(SHAPE) if wanted.draft else None)


def commands(wanted: Recipe) -> Iterator[Command]:
    """Every command of a recipe on the engine path, in order."""
    assert wanted.runtime.kind is RuntimeKind.ENGINE
    tools = toolchain(wanted.runtime.image)
    yield from family(wanted).convert_commands(tools)
    yield from family(wanted).build_commands(tools)
