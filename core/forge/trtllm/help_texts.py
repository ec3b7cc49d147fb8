"""What a program's ``--help`` says it takes, so that a flag is refused before GPU time is spent on it. Pure.

The texts are argparse's: ``usage:`` in front, then one entry per option, ``-x, --flag VALUE`` or ``--flag {a,b}``. A help text
does not say everything (hidden options, converters, what a choice is compared with), so only what is sure is refused: argparse
itself has the last word when the program runs. ``source`` is the program's own text where it was read: it says more.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from forge.errors import meant

_OPTION = re.compile(r"^\s+(-{1,2}[^\s\-].*)$")
_SPELLING = re.compile(r"(?:^|(?<=\s))(-{1,2}[^\s,=\[\]{}-][^\s,=\[\]{}]*)")
_CHOICES = re.compile(r"\s(\{.*\})")
_REST = re.compile(r"(?<=\s)\.\.\.(?=\s|$)")
"""How usage shows subcommands and arguments that take all that follows (argparse.REMAINDER): more than this parser's flags."""
_DEFAULT = re.compile(r"\s*\(default: (.*?)\)$")
_INDENTED = 4
"""Columns at which a line goes on with the option above it."""
_LEAST = 2
"""Choices below which braces may be a metavar."""


class Complaint(Struct, frozen=True):
    """A flag that a program does not take, or a value that the flag does not."""

    flag: str
    what: str
    hint: str


class Option(Struct, frozen=True):
    """One option: its spellings; what stands for its value (nothing for a switch); choices, default and meaning if known."""

    names: tuple[str, ...]
    takes: str = ""
    choices: tuple[str, ...] = ()
    default: str = ""
    meaning: str = ""


class _Argument(Struct, frozen=True):
    """How the source adds one argument: ``plain`` where a word is compared with string choices as it is."""

    flags: tuple[str, ...]
    plain: bool


def flags(text: str) -> Mapping[str, tuple[str, ...]]:
    """Every flag of a help text with its choices; no choices where any value will do, or where they cannot be told."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in _entries(text):
        braces = _CHOICES.search(entry)
        words = braces[1].partition("}")[0].strip("{").split(",") if braces else []
        allowed = tuple(word.strip() for word in words) if _tellable(words) else ()
        for flag in _SPELLING.findall(entry):
            found[flag] = allowed if found.get(flag, allowed) == allowed else ()
    return found


def options(text: str) -> tuple[Option, ...]:
    """Every option of a help text, in its order, but for ``--help`` itself."""
    known = flags(text)
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if _OPTION.match(line) and _SPELLING.findall(line.strip().partition("  ")[0]):
            blocks.append([line])
        elif blocks and blocks[-1] and line.startswith(" " * _INDENTED):
            blocks[-1].append(line)
        else:
            blocks.append([])
    made = (_option(block, known) for block in blocks if block)
    return tuple(each for each in made if "--help" not in each.names)


def _option(block: list[str], known: Mapping[str, tuple[str, ...]]) -> Option:
    spelled, _, first = block[0].strip().partition("  ")
    names = tuple(_SPELLING.findall(spelled))
    value = spelled.rpartition(names[-1])[2].strip(" ,=[]")
    meaning = " ".join(" ".join((first, *block[1:])).split())
    default = _DEFAULT.search(meaning)
    told = _DEFAULT.sub("", meaning).strip()
    choices = known.get(names[-1], ())
    return Option(names, "" if choices else value, choices, default[1] if default and default[1] != "None" else "", told)


def complaints(argv: Iterable[str], text: str, source: str = "") -> tuple[Complaint, ...]:
    """What in ``argv`` (a program's arguments) it surely does not take. Nothing where the text names no flags."""
    known = flags(text)
    usage = text.partition("\n\n")[0]
    rest = any(_REST.search(part) for part in (usage, *_entries(text)))
    if not known or rest or "parse_known_args" in source:
        return ()
    return tuple(_complaints(list(argv), known, text, source))


def _entries(text: str) -> Iterator[str]:
    """One line per option: its spellings and values, without its help."""
    for line in text.splitlines():
        if found := _OPTION.match(line):
            yield re.split(r"\s{2,}", found[1])[0]


def _tellable(words: list[str]) -> bool:
    """Whether these words can be what a person types: members of an Enum are shown as Class.member, objects as <...>."""
    return len(words) >= _LEAST and all(re.fullmatch(r"[\w+-]+(\.[0-9]+)?", word.strip()) for word in words)


def _complaints(argv: list[str], known: Mapping[str, tuple[str, ...]], text: str, source: str) -> Iterator[Complaint]:
    added = _arguments(source)
    hidden = [flag for each in added for flag in each.flags]
    for place, word in enumerate(argv):
        if word == "--":
            return
        if " " in word or not re.match(r"--?[A-Za-z]", word):
            continue
        flag, inline, value = word.partition("=")
        if flag in known:
            following = argv[place + 1] if place + 1 < len(argv) else ""
            value = value if inline else ("" if following.startswith("-") else following)
            if value and not _takes(value, known[flag]) and all(each.plain for each in added if flag in each.flags):
                yield Complaint(flag, f"does not take {value!r}", f"it takes {', '.join(known[flag])}")
        elif not (_begins(flag, (*known, *hidden)) or _named(flag, text) or _named(flag, source)):
            yield Complaint(flag, "is no flag of it", meant(flag, known, "see its --help in the image"))


def _takes(value: str, choices: tuple[str, ...]) -> bool:
    """Whether a value is among the choices, also as the usual converters would read it: int, float, str.lower, str.strip."""
    return not choices or _read(value) in {_read(choice) for choice in choices}


def _read(word: str) -> str:
    plain = word.strip().casefold().replace("_", "-")
    try:
        return str(float(word))
    except ValueError:
        return plain


def _begins(flag: str, known: Iterable[str]) -> bool:
    """Whether argparse may take it for a longer flag, cut short (allow_abbrev), or for short ones in one word (-xyz, -j4)."""
    if flag.startswith("--"):
        return any(each.startswith(flag) for each in known)
    return any(each.startswith(flag) or each == flag[:2] for each in known)


def _named(flag: str, text: str) -> bool:
    """Whether a text has it as a word anywhere: an option that the list of options hides, or writes in another way."""
    return bool(re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text))


def _arguments(source: str) -> tuple[_Argument, ...]:
    """Every ``add_argument`` of a program's source; none where it is no Python of this version."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return tuple(_argument(call) for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument")


def _argument(call: ast.Call) -> _Argument:
    spelled = tuple(each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str))
    stated = {keyword.arg: keyword.value for keyword in call.keywords}
    kind, choices = stated.get("type"), stated.get("choices")
    texts = isinstance(choices, ast.List | ast.Tuple | ast.Set) and all(_is_text(each) for each in choices.elts)
    plain = (kind is None or ast.unparse(kind) == "str") and texts and not {None, "action", "metavar"} & stated.keys()
    return _Argument(spelled, plain)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
