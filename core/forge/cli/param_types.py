"""Arguments that name something: how each is read, and what a shell completes."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem


class Named(click.ParamType[str]):
    """Something by its name; ``words`` gives what a shell completes."""

    def __init__(self, name: str, words: Callable[[], Iterable[str]]) -> None:
        self.name = name
        self._words = words

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's
        start = incomplete.lower()
        return [CompletionItem(word) for word in self._words() if word.lower().startswith(start)]


class RecipeName(Named):
    """A recipe's or a deployment's file, or the name of a recipe that is here or that forge ships."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's
        from forge.recipe.shipped import located

        return located(str(value))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        # The file first: a shell's own completion of files gives way to what comes after it.
        return [CompletionItem(incomplete, type="file"), *super().shell_complete(ctx, param, incomplete)]


def _shipped() -> Iterable[str]:
    from forge.recipe.shipped import names

    return names()


def _served() -> Iterable[str]:
    from forge.api.forge import Forge
    from forge.errors import ForgeError

    try:
        return Forge.here().offered()
    except (ForgeError, OSError):  # nobody wants an error in the middle of a line
        return ()


def _cards() -> Iterable[str]:
    from forge.fit.gpus import table

    return (gpu.name.replace(" ", "-") for gpu in table())


def _images() -> Iterable[str]:
    from forge.trtllm.image_table import releases

    return (*(each.tag for each in releases() if not each.bare), "local")


class Text(Named):
    """What is said to a served MODEL, which is named before it."""

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's
        return f"MODEL comes first, then {param.human_readable_name}; served: {', '.join(_served()) or 'none'}."


class File(click.Path):
    """A file that is there."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value).lstrip().startswith(("{", "[")) and not os.path.exists(value):
            self.fail("this is JSON, and no file's name: write it into a file, and name that.", param, ctx)
        return super().convert(value, param, ctx)


class RuntimeName(click.Choice[str]):
    """How a recipe is served, as forge has it (``RuntimeKind``), whose import waits until one is named."""

    def __init__(self) -> None:
        super().__init__(["engine", "llmapi", "twin", "vllm"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from forge.schema.values import RuntimeKind

        return RuntimeKind(super().convert(value, param, ctx))


RECIPE, EXAMPLE, SERVED = RecipeName("recipe", _shipped), Named("name", _shipped), Named("model", _served)
GPU, IMAGE = Named("text", _cards), Named("image", _images)
RUNTIME_NAME = RuntimeName()
FILE = File(exists=True, dir_okay=False, path_type=Path)
PROMPT = Text("text", tuple)
