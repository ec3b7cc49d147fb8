"""Headers of safetensors files on this machine."""

from collections.abc import Iterable
from pathlib import Path

from forge.errors import SourceError
from forge.safetensors import PREFIX, Tensor, length, parse


def local(folder: Path, names: Iterable[str]) -> tuple[Tensor, ...]:
    """The tensors of those of ``names`` that are safetensors, by their headers; SourceError where one has none."""
    found: list[Tensor] = []
    for name in sorted(names):
        if not name.endswith(".safetensors"):
            continue
        try:
            with (folder / name).open("rb") as file:
                found += parse(file.read(length(file.read(PREFIX))))
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}", where=str(folder / name)) from error
        except ValueError as error:
            raise SourceError(str(error), where=str(folder / name), hint="bring the whole file, then run again") from error
    return tuple(found)
