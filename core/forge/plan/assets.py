"""What stands among a recipe's assets whatever the runtime."""

from collections.abc import Sequence

from forge.model import Tokenizer
from forge.steps import Link


def tokenizer_links(tokenizer: Tokenizer, held: Sequence[str], assets: str) -> tuple[Link, ...]:
    """The tokenizer's files among those that the need ``model`` holds."""
    return tuple(Link("model", path, f"{assets}/tokenizer/{path}") for path in tokenizer.files if path in held)
