"""The command line. It parses and prints; everything else is the workshop's. Heavy imports happen inside the verbs."""

import os
from contextlib import suppress

import click

from forge.cli import benching, building, cache, checking, doctoring, fitting, keeping, looking, serving, talking, verifying


def _width() -> int:
    """Columns for a help text, as click has them; click would import shutil for it, and with that four compressions."""
    columns = 80
    with suppress(OSError, ValueError):
        columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(1).columns
    return max(min(columns or 80, 80) - 2, 50)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "terminal_width": _width()})
@click.version_option(package_name="triton-forge", prog_name="forge")
def main() -> None:
    """From a model id to tokens streaming out of Triton.

    \b
    forge build recipes/smollm2-135m-instruct.toml
    forge serve --detach
    forge generate smollm2-135m-instruct "Why is the sky blue?"
    """


for _command in (
    building.build,
    building.plan,
    keeping.add,
    keeping.remove,
    keeping.list_models,
    building.lock,
    building.new,
    building.dockerfile,
    serving.serve,
    serving.status,
    serving.logs,
    serving.stop,
    serving.reload,
    talking.generate,
    talking.chat,
    checking.check,
    fitting.fit,
    doctoring.doctor,
    looking.plugins,
    looking.schema,
    cache.cache,
    verifying.verify,
    benching.bench,
):
    main.add_command(_command)
