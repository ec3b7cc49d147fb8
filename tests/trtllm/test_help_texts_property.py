"""Whatever parser a program has: what its argparse takes is not refused from its help text."""

import argparse
import contextlib
import io
from collections.abc import Sequence

import pytest
from hypothesis import given, settings, strategies as st

from forge.trtllm import help_texts

PREAMBLE = """
import argparse
from enum import Enum

class Kind(str, Enum):
    jax = "jax"
    hf = "hf"

class Plain(Enum):
    RED = "red"
    BLUE = "blue"

    def __str__(self):
        return self.name

class Mode(Enum):
    ON = 1
    OFF = 2

def cut(word):
    return word.split(":")[0]

"""

NAMES = st.sampled_from(
    ["--dtype", "--model-dir", "--model_dir", "--tp_size", "--ckpt-type", "--a", "--use.gemm", "--no_bias", "--use", "--x2"]
)
SHORT = st.sampled_from(["-a", "-w", "-kv", "-sq"])
HIDDEN = [
    "action='store_true', help=argparse.SUPPRESS",
    "help=argparse.SUPPRESS",
    "type=Plain, choices=list(Plain)",
    "type=lambda word: {'one': 1, 'two': 2}[word], choices=[1, 2]",
    "type=cut, choices=['fp8', 'int8']",
    "metavar='{path,to}'",
]
"""What a help text says nothing of, or says wrongly; the source does not."""
SHOWN = [
    "action='store_true'",
    "action='count'",
    "action=argparse.BooleanOptionalAction",
    "type=int",
    "type=int, choices=range(4)",
    "type=int, choices=[0, 1, 2]",
    "type=float, choices=[0.5, 1.0]",
    "type=Kind, choices=list(Kind)",
    "choices=list(Kind)",
    "type=lambda word: Mode[word.upper()], choices=list(Mode)",
    "type=str.upper, choices=['A', 'B']",
    "choices=['float16', 'bfloat16', 'auto']",
    "choices=('auto',)",
    "choices=['one, two', 'a b', 'c}d', '']",
    "choices=['float16', 'auto'], metavar='KIND'",
    "metavar='{PATH}'",
    "nargs='+', choices=['a', 'b']",
    "nargs='*', choices=['a', 'b']",
    "nargs='?', const='a', choices=['a', 'b']",
    "nargs=2, choices=['a', 'b']",
    "nargs=argparse.REMAINDER",
    "help='one of {auto,fp8}; see --hidden'",
    "help='a long text ' * 30, choices=['choice_number_%d' % number for number in range(9)]",
]
VALUES = st.sampled_from(
    [
        *("auto", "float16", "fp8", "fp8:e4m3", "jax", "hf", "red", "RED", "on", "one", "a", "A", "b", "0", "1", "01", "0.5"),
        *("-1", "x", "c}d", "one, two", "a b", "", "to", "/path", "choice_number_3", "-x y", "--", "sub"),
    ]
)
PARSERS = st.sampled_from(
    ["", "allow_abbrev=False", "formatter_class=argparse.ArgumentDefaultsHelpFormatter", "add_help=False"]
)
POSITIONALS = st.sampled_from(
    [
        "",
        "parser.add_argument('files', nargs='*')",
        "parser.add_argument('rest', nargs=argparse.REMAINDER)",
        "subs = parser.add_subparsers()\nsub = subs.add_parser('sub')\nsub.add_argument('--inner', choices=['p', 'q'])",
    ]
)


@st.composite
def sources(draw: st.DrawFn, options: list[str]) -> tuple[str, list[str]]:
    """A program's text that makes ``parser``, and the flags in it."""
    lines, flags = [f"parser = argparse.ArgumentParser({draw(PARSERS)})"], list[str]()
    for _ in range(draw(st.integers(1, 4))):
        names = [each for each in draw(st.lists(NAMES, min_size=1, max_size=2, unique=True)) if each not in flags]
        names += [each for each in draw(st.lists(SHORT, max_size=1)) if each not in flags]
        if names:
            flags += names
            spelled = ", ".join(map(repr, names))
            lines.append(f"parser.add_argument({spelled}, {draw(st.sampled_from(options))})")
    lines.append(draw(POSITIONALS))
    return PREAMBLE + "\n".join(lines), flags


@st.composite
def command_lines(draw: st.DrawFn, flags: Sequence[str]) -> list[str]:
    """Words that a person may type at a parser with these flags: whole, cut short, with = and without."""
    argv: list[str] = []
    for _ in range(draw(st.integers(0, 5))):
        flag = draw(st.sampled_from([*flags, "--inner", "--no-use", "--hidden"]))
        flag = flag[: draw(st.integers(3, len(flag)))] if len(flag) > 3 and draw(st.booleans()) else flag
        value = draw(VALUES)
        argv += draw(st.sampled_from([[flag], [flag, value], [f"{flag}={value}"], [f"{flag}{value}"], [value]]))
    return argv


def made(source: str) -> argparse.ArgumentParser:
    held: dict[str, object] = {}
    exec(source, held)
    parser = held["parser"]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def taken(parser: argparse.ArgumentParser, argv: Sequence[str]) -> bool:
    """Whether argparse takes them; a call for help takes nothing."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(argv)
    except (SystemExit, KeyError):  # the second is a converter's own
        return False
    return True


@pytest.mark.parametrize("read", [True, False], ids=["with the source", "by the text alone"])
def test_what_argparse_takes_is_never_refused(*, read: bool) -> None:
    refused: list[str] = []

    @settings(max_examples=300)
    @given(st.data(), st.sampled_from([40, 80, 200]))
    def holds(data: st.DataObject, columns: int) -> None:
        source, flags = data.draw(sources(SHOWN + HIDDEN if read else SHOWN))
        parser, argv = made(source), data.draw(command_lines(flags))
        found = help_texts.complaints(argv, helped(parser, columns), source if read else "")
        if taken(parser, argv):
            assert found == ()
        refused.extend(each.flag for each in found)

    holds()
    assert refused, "what argparse does not take is refused now and then"


def helped(parser: argparse.ArgumentParser, columns: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        return parser.format_help()
