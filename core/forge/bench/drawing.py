"""Leaves the page of a benchmark as a file."""

from importlib.util import find_spec
from pathlib import Path

from forge.bench.results import Results
from forge.errors import BenchError
from forge.files import trees


def require() -> None:
    """BenchError where no page could be drawn; to be asked before a benchmark that is to leave one."""
    if find_spec("bokeh") is None:
        raise BenchError("bokeh is not installed, which draws the page", hint="pip install 'triton-forge[bench]'")


def leave(results: Results, file: Path) -> Path:
    """Draw ``results`` into ``file``; a reader sees the former page or this one. BenchError where there is nothing to draw."""
    require()
    if not results.points:
        raise BenchError("nothing was measured that could be drawn", where=str(file))
    from forge.bench.page import html

    trees.write_whole(file, html(results))
    return file
