"""What known failures mean and how they are fixed: a table over the text of a log. Pure but for reading its own table.

Each row was read in a public issue (``seen``), or stands in the sources of the program that says it. Forge's own rows are
package data (``diagnoses.toml``), and docs/diagnoses.md lists them; a person's own stand in a file of the same form (``read``),
and plugins bring theirs (the hook ``forge_diagnoses``). A text may name the pattern's groups; ``needed`` and ``there`` are
bytes, ``share`` what is there in percent of what is needed.

What is looked for is the failure, and not any line of a long log: the frames of tracebacks are no messages; what Triton itself
informs or warns of broke nothing (on every machine without a GPU it says that the driver is too old); what stands before a
success (a network that was built) did no harm; and the exception that a program ended with is not explained by an older line,
unless it says no more than that something went wrong ("Engine building failed, please check error log").
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib import resources
from typing import overload

import msgspec
from msgspec import Struct

NAME = "diagnoses.toml"
"""The file of forge's own rows among its package data, and of a person's own in forge's home folder."""


class Diagnosis(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A failure that is known: ``pattern`` (a regular expression, case ignored), what it means, the fix, where it was seen.

    ``host`` says that this machine is to be fixed, not the recipe.
    """

    name: str
    pattern: str
    meaning: str
    fix: str
    seen: str = ""
    host: bool = False
    rule: str = ""
    """The rule of ``forge check`` that finds the same in files."""

    def __str__(self) -> str:
        return f"{self.meaning}: {self.fix}"


class _Shipped(Sequence[Diagnosis]):
    """Forge's own rows, read when somebody first asks for one: most runs of forge never do."""

    @cached_property
    def _rows(self) -> tuple[Diagnosis, ...]:
        return read((resources.files("forge.diagnoses") / NAME).read_text(encoding="utf-8")).rows

    @overload
    def __getitem__(self, at: int) -> Diagnosis: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Diagnosis]: ...
    def __getitem__(self, at: int | slice) -> Diagnosis | Sequence[Diagnosis]:
        return self._rows[at]

    def __len__(self) -> int:
        return len(self._rows)


DIAGNOSES: Sequence[Diagnosis] = _Shipped()
"""Forge's own rows, the first that knows a failure before the others."""

_FLAGS = re.IGNORECASE | re.MULTILINE
_PREFIX = r"(?:\[[^\]\n]*\](?:<\w+>)?:?\s*|\w+\(\d+\):\s*)*"
"""What launchers put before a line: mpirun's ``[1,0]<stderr>:``, torch's ``[rank0]:``, TensorRT-LLM's date."""
_FRAME = re.compile(rf"^{_PREFIX}\s*File \".*\", line \d+(, in .*)?$")
_SOURCE = re.compile(rf"^{_PREFIX}\s{{2,}}\S")
_TRITON = re.compile(
    rf"^{_PREFIX}([IW]\d{{4}} \d\d:\d\d:\d\d\.\d+ \d+ \S+:\d+\] |"
    r"E\d{4} \S+ \d+ ensemble_scheduler\.cc:\d+\] \"?unable to create stream)"
)
"""A line of Triton's own log that tells of no failure: of an ensemble without a GPU it says "error", and serves it."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SUCCESS = re.compile(
    r"Total time of (building|converting)|Engine serialized\.|Build phase peak memory|"
    r"Saving engine to|exported the model|Quantization done",
    re.IGNORECASE,
)
"""Lines after which what came before has turned out to be harmless."""
_ENDED = re.compile(
    rf"^{_PREFIX}([A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Failure|Unavailable)(: |:?$)|what\(\):\s)"
    r"|Assertion failed:\s"
)
"""What a program ends with: a Python exception's last line, C++'s, TensorRT-LLM's assertion."""
_VAGUE = re.compile(
    r"please check error log|see (the )?(log|above)|Engine building failed|Checkpoint conversion failed|CalledProcessError|"
    r"non-?zero exit|exited with|SystemExit|^\W*(AssertionError|KeyboardInterrupt):?\s*$|Executor worker returned error|"
    r"MPI_ABORT|failed to load all models",
    _FLAGS,
)
"""Ends that say no more than that something went wrong."""
_CHAINED = re.compile(r"During handling of the above exception|was the direct cause of the following")


def diagnose(text: str, table: Iterable[Diagnosis] = DIAGNOSES) -> Diagnosis | None:
    """The first row of ``table`` that knows the failure in ``text``, its sentences filled from it; None where none does."""
    said = _messages(text)
    begin = _failure(said)
    for row in table:
        match = next((found for found in re.finditer(row.pattern, said, _FLAGS) if found.end() > begin), None)
        if match is not None:
            words = _words(match)
            return msgspec.structs.replace(row, meaning=_fill(row.meaning, words), fix=_fill(row.fix, words))
    return None


def _messages(text: str) -> str:
    """The lines that say something: without colours, frames of tracebacks, and what a later success has outlived."""
    lines = list(_spoken(_COLOUR.sub("", text).splitlines()))
    harmless = max((at + 1 for at, line in enumerate(lines) if _SUCCESS.search(line)), default=0)
    return "\n".join(lines[harmless:])


def _spoken(lines: Iterable[str]) -> Iterator[str]:
    frame = False
    for line in lines:
        if _FRAME.match(line):
            frame = True
        elif not (frame and _SOURCE.match(line)):
            frame = False
            if not _TRITON.match(line):
                yield line


def _failure(said: str) -> int:
    """Where the last failure begins in ``said``: with the exception that the program ended with, or the one that led to it.

    0 where nothing says clearly how it ended.
    """
    begin = at = 0
    chained = False
    for line in said.splitlines(keepends=True):
        if _CHAINED.search(line):
            chained = True
        elif _ENDED.search(line) and not _VAGUE.search(line):
            begin, chained = (begin if chained else at), False
        at += len(line)
    return begin


class Own(Struct, frozen=True):
    """A person's own rows, and what is wrong with the others of their file."""

    rows: tuple[Diagnosis, ...] = ()
    problems: tuple[str, ...] = ()


class _File(msgspec.Struct, forbid_unknown_fields=True):
    diagnosis: tuple[Diagnosis, ...] = ()


def read(text: str) -> Own:
    """The tables [[diagnosis]] of a TOML text, each with a row's words. What cannot be used is told and left out."""
    try:
        stated = msgspec.toml.decode(text, type=_File).diagnosis
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Own(problems=(str(error),))
    wrong = {row.name: problem for row in stated if (problem := fault(row))}
    return Own(tuple(row for row in stated if row.name not in wrong), tuple(f"{name}: {what}" for name, what in wrong.items()))


def fault(row: Diagnosis) -> str:
    """What makes a row useless; empty for a good one."""
    try:
        found = re.compile(row.pattern, _FLAGS)
    except re.error as error:
        return f"{row.pattern!r} is no regular expression: {error}"
    if found.search(""):
        return f"{row.pattern!r} is found in every text"
    if not (row.name and row.meaning and row.fix):
        return "a row says its name, what the failure means and the fix"
    known = {*found.groupindex, "share"}
    strange = [word for word in re.findall(r"\{(\w+)\}", row.meaning + row.fix) if word not in known]
    return f"{{{strange[0]}}} is no group of its pattern" if strange else ""


def named(name: str) -> Diagnosis:
    """A row of forge's own table."""
    return next(row for row in DIAGNOSES if row.name == name)


def _words(match: re.Match[str]) -> dict[str, str]:
    found = {name: value for name, value in match.groupdict().items() if value is not None}
    words = {name: f"{int(value) / 1e9:.1f} GB" if name in {"needed", "there"} else value for name, value in found.items()}
    if "needed" in found and "there" in found:
        words["share"] = str(100 * int(found["there"]) // max(1, int(found["needed"])))
    return words


def _fill(sentence: str, words: dict[str, str]) -> str:
    """Only known names are filled: a stranger's row may hold braces that mean nothing."""
    return re.sub(r"\{(\w+)\}", lambda match: words.get(match[1], match[0]), sentence)
