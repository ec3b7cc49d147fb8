"""Runs what a page of the docs shows: its commands with what they print, and its Python.

A block runs unless the line above it says otherwise, in a comment that readers do not see:

``<!-- with a server: why -->``     it runs where there is a server, a model and time (the slow tests)
``<!-- output differs: why -->``    it runs, and what it prints is not compared
``<!-- not run: why -->``           it does not run; the tests count these
"""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner

from forge.cli import main
from forge.ports import Ports

ROOT = Path(__file__).parent.parent
RUNNABLE = ("console", "python", "sh")
MARKS = ("with a server", "output differs", "not run")
_BLOCK = re.compile(
    r'(?P<marks>(?:^<!-- [^\n]* -->\n)*)^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$', re.M | re.S
)
_MARK = re.compile(r"^<!-- ([^:]+): (.+) -->$", re.M)
_PROGRESS = re.compile(r"^(?:made|held|\.\.\.)  +(?P<step>.+?)(?:  .*)?$")
_VOLATILE = (
    (re.compile(r"\b[0-9a-f]{64}\b"), "<key>"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "<key>"),
    (re.compile(r"\b[0-9a-f]{16}\.log\b"), "<log>"),
    (re.compile(r"\b\d+(\.\d+)? (B|kB|MB|GB)\b"), "<size>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d\b"), "<time>"),
    (re.compile(r"\b(127\.0\.0\.1:|port |--(?:http|grpc|metrics)-port[= ])\d+"), r"\1<port>"),
    (re.compile(r"\b(process |\"pid\":)\d+"), r"\1<pid>"),
    (re.compile(r"  +"), "  "),
    (re.compile(r" +$", re.M), ""),
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; ``marks`` are what the comments above it say, by their first words."""

    page: str
    line: int
    language: str
    title: str
    code: str
    marks: dict[str, str]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> tuple[Block, ...]:
    """Every fenced block of a page, in order; the path of ``page`` is relative to the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        marks = dict(_MARK.findall(match["marks"]))
        unknown = marks.keys() - set(MARKS)
        line = text.count("\n", 0, match.start("language")) + 1
        if unknown:
            raise AssertionError(f"{page}:{line}: no mark of a block: {', '.join(sorted(unknown))}")
        found.append(Block(page, line, match["language"], match["title"] or "", match["code"], marks))
    return tuple(found)


def alike(told: str, shown: str) -> bool:
    """Whether a page tells what was shown: keys, sizes, times, ports and processes aside; a line ``...`` stands for any."""
    pattern = re.escape(_settled(told)).replace(r"\.\.\.\n", r"(?:.*\n)*?")
    return re.fullmatch(pattern, _settled(shown)) is not None


def _settled(text: str) -> str:
    """A step's progress becomes its name alone: whether it was made or held, and how long it took, is the machine's."""
    lines = text.splitlines()
    steps = (_PROGRESS.match(line) for line in lines)
    named = [f"step {step['step']}" if step else line for line, step in zip(lines, steps, strict=True)]
    once = [line for number, line in enumerate(named) if not number or line != named[number - 1] or "step " not in line]
    plain = "".join(f"{line}\n" for line in once)
    for pattern, put in _VOLATILE:
        plain = pattern.sub(put, plain)
    return plain


@dataclass
class Reader:
    """Somebody who types what a page shows, standing in ``place``; ``ports`` are what a server gets instead of its defaults."""

    place: Path
    ports: Ports = field(default_factory=Ports)
    names: dict[str, object] = field(default_factory=dict[str, object])

    def read(self, block: Block, *, compare: bool = True) -> None:
        """Run a block; AssertionError where the page tells something else than happens."""
        if "not run" in block.marks or block.language not in RUNNABLE:
            return
        if block.language == "python":
            code = "\n" * block.line + self._placed(block.code)
            exec(compile(code, block.page, "exec"), self.names)
            return
        for command, told in commands(block.code):
            shown = self.type(command)
            if compare and "output differs" not in block.marks:
                here = shown.replace(str(self.place), "/home/me/work")
                assert alike(told, here), f"{block}: {command}\nthe page tells:\n{told}\nand this was shown:\n{here}"

    def type(self, command: str) -> str:
        """What a terminal would show of one command of forge."""
        words = shlex.split(command, comments=True)
        given = ""
        if "|" in words:
            bar = words.index("|")
            assert words[0] in ("echo", "printf"), command
            given, words = " ".join(words[1:bar]).replace("\\n", "\n") + "\n", words[bar + 1 :]
        assert words[0] == "forge", f"only forge's own commands run here: {command}"
        if words[1] == "serve":
            numbers = self.ports.http, self.ports.grpc, self.ports.metrics
            named = zip(("--http-port", "--grpc-port", "--metrics-port"), numbers, strict=True)
            words += [str(word) for name, number in named if name not in words for word in (name, number)]
        done = CliRunner().invoke(main, words[1:], input=given)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output if done.exit_code == 0 else f"{done.output}[exit code {done.exit_code}]\n"

    def _placed(self, code: str) -> str:
        """Fixed port numbers of an example, replaced by free ones."""
        numbers = {18000: self.ports.http, 18001: self.ports.grpc, 18002: self.ports.metrics}
        return re.sub(r"\b1800[0-2]\b", lambda match: str(numbers[int(match[0])]), code)


def commands(code: str) -> tuple[tuple[str, str], ...]:
    """(command, what it prints) of a console block; a command may go on after a backslash."""
    found: list[tuple[str, str]] = []
    for part in re.split(r"^\$ ", code.replace("\\\n", " "), flags=re.M)[1:]:
        command, _, told = part.partition("\n")
        found.append((command, told))
    return tuple(found)
