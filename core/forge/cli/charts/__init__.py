"""Pictures of what verbs say: a plan as a graph, memory as bars. SVG and HTML that ask for nothing."""

from pathlib import Path

from forge.cli.output import Output
from forge.cli.text import size
from forge.errors import ForgeError
from forge.files import texts, trees


def drawn(name: str, **values: object) -> str:
    """The template ``name`` of this folder, filled; what stands in ``values`` is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    found = Environment(
        loader=FunctionLoader(lambda part: texts.part("forge.cli.charts", part)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["size"] = size
    return found.get_template(name).render(**values)


def keep(output: Output, file: Path, text: str) -> None:
    """Write a picture and say so; ForgeError where it cannot be written."""
    try:
        trees.write_whole(file, text)
    except OSError as error:
        gone = not file.parent.is_dir()
        what = "there is no folder for the picture" if gone else f"the picture cannot be written: {trees.reason(error, file)}"
        hint = f"make it, `mkdir -p {file.parent}`, or name another file" if gone else "name another file"
        raise ForgeError(what, where=str(file.parent if gone else file), hint=hint) from error
    output.say(f"drawn: {file}")
