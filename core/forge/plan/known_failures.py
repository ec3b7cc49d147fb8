"""The failures that are known, from three places: a person's own file, the installed plugins, forge."""

from collections.abc import Callable, Iterator
from pathlib import Path

from forge import diagnoses
from forge.diagnoses import DIAGNOSES, Diagnosis
from forge.files import texts
from forge.plan import families


class Known:
    """The failures that are known: the rows of a person's own ``file``, those of the installed plugins, forge's own.

    They are gathered when a failure is to be explained: plugins are imported for it.
    """

    def __init__(self, file: Path, say: Callable[[str], None]) -> None:
        self._file = file
        self._say = say

    def __iter__(self) -> Iterator[Diagnosis]:
        yield from self._own()
        yield from families.diagnoses()
        yield from DIAGNOSES

    def _own(self) -> tuple[Diagnosis, ...]:
        try:
            held = diagnoses.read(texts.content(self._file).decode())
        except texts.Missing:
            return ()
        except (texts.Odd, UnicodeDecodeError) as error:
            held = diagnoses.Own(problems=(str(error),))
        for problem in held.problems:
            self._say(f"{self._file}: {problem}; not used")
        return held.rows
