"""Arguments that name something: how each is read, and what a shell completes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem


class RecipeName(click.ParamType[str]):
    """A recipe's or a deployment's file, or the name of a recipe that is here or that forge ships."""

    name = "recipe"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's
        from forge.recipe.shipped import located

        return located(str(value))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's
        from forge.recipe.shipped import names

        # The file first: a shell's own completion of files gives way to what comes after it.
        return [CompletionItem(incomplete, type="file"), *_beginning(incomplete, names())]


class ExampleName(click.ParamType[str]):
    """The name of a recipe that forge ships."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's
        from forge.recipe.shipped import names

        return _beginning(incomplete, names())


class ServedName(click.ParamType[str]):
    """The name of a model that is served."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's
        from forge.api.forge import Forge
        from forge.errors import ForgeError

        try:
            return _beginning(incomplete, Forge.here().offered())
        except (ForgeError, OSError):  # nobody wants an error in the middle of a line
            return []


class GpuName(click.ParamType[str]):
    """The name of a card that forge knows."""

    name = "text"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's
        from forge.fit.gpus import table

        return _beginning(incomplete, (gpu.name.replace(" ", "-") for gpu in table()))


class ImageName(click.ParamType[str]):
    """An image of NVIDIA's by its tag, any other by its reference, or "local"."""

    name = "image"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's
        from forge.trtllm.image_table import releases

        return _beginning(incomplete, (*(each.tag for each in releases() if not each.bare), "local"))


class RuntimeName(click.Choice[str]):
    """How a recipe is served, as forge has it (``RuntimeKind``), whose import waits until one is named."""

    def __init__(self) -> None:
        super().__init__(["engine", "llmapi", "twin", "vllm"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from forge.schema.values import RuntimeKind

        return RuntimeKind(super().convert(value, param, ctx))


def _beginning(incomplete: str, words: Iterable[str]) -> list[CompletionItem]:
    start = incomplete.lower()
    return [CompletionItem(word) for word in words if word.lower().startswith(start)]


RECIPE, EXAMPLE, SERVED, GPU, IMAGE = RecipeName(), ExampleName(), ServedName(), GpuName(), ImageName()
RUNTIME_NAME = RuntimeName()
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
"""One that is there."""
