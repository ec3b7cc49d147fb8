"""What a program's ``--help`` says it takes, so that a flag is refused before GPU time is spent on it. Pure.

The texts are argparse's: ``usage:`` in front, then one entry per option, ``-x, --flag VALUE`` or ``--flag {a,b}``.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

_OPTION = re.compile(r"^\s{1,8}(-{1,2}[A-Za-z][\w-]*.*)$")
_FLAG = re.compile(r"(?<![\w-])(-{1,2}[A-Za-z][\w-]*)(?:[ =](\{[^}]*\}))?")


@dataclass(frozen=True, slots=True)
class Complaint:
    """A flag that a program does not take, or a value that the flag does not."""

    flag: str
    what: str
    hint: str


def flags(text: str) -> Mapping[str, tuple[str, ...]]:
    """Every flag of a help text with its choices; no choices where any value will do."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in _entries(text):
        spelled = _FLAG.findall(entry)
        choices = next((set_ for _, set_ in spelled if set_), "")
        allowed = tuple(word.strip() for word in choices.strip("{}").split(",")) if choices else ()
        found |= {flag: allowed for flag, _ in spelled}
    return found


def complaints(argv: Iterable[str], text: str) -> tuple[Complaint, ...]:
    """What in ``argv`` (a program's arguments) its help text does not know. Nothing where the text names no flags."""
    known = flags(text)
    return tuple(_complaints(list(argv), known)) if known else ()


def _entries(text: str) -> Iterator[str]:
    """One line per option: its spellings, joined with a choices set that wraps onto the next lines."""
    lines = iter(text.splitlines())
    for line in lines:
        if not _OPTION.match(line):
            continue
        entry = line.strip()
        while entry.count("{") > entry.count("}"):
            entry += next(lines, "}").strip()
        yield re.split(r"\s{2,}", entry)[0]


def _complaints(argv: list[str], known: Mapping[str, tuple[str, ...]]) -> Iterator[Complaint]:
    for place, word in enumerate(argv):
        if not re.match(r"--?[A-Za-z]", word):
            continue
        flag, _, inline = word.partition("=")
        if flag not in known:
            near = difflib.get_close_matches(flag, known, 1)
            yield Complaint(flag, "is no flag of it", f"did you mean {near[0]}?" if near else "see its --help in the image")
            continue
        following = argv[place + 1] if place + 1 < len(argv) else ""
        value = inline or ("" if following.startswith("--") else following)
        if known[flag] and value and value not in known[flag]:
            yield Complaint(flag, f"does not take {value!r}", f"it takes {', '.join(known[flag])}")
