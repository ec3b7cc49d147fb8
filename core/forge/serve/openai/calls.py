"""Reads calls of tools out of what a model says, as it comes: the forms that chat templates of well-known models ask for. Pure.

- Hermes and Qwen: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, each call within its own marks.
- Llama 3: the answer is an object with ``name`` and ``parameters``, after ``<|python_tag|>`` or bare; more follow a semicolon.
- Mistral: ``[TOOL_CALLS]`` and a list of objects; since 2025 a name with its arguments, ``[TOOL_CALLS]add{"a": 1}``.
- What a guide holds an answer to: a list of objects, or the arguments of one tool alone.
"""

import json
import re
from collections.abc import Callable
from enum import Enum

from msgspec import Struct, field

from forge.client.stops import begun


class _Marks(Struct, frozen=True):
    """``opening`` comes before calls, ``closing`` after; ``between`` are characters among them.

    ``bare``: how an answer begins that is a call without marks; ``named``: a call may be a name with its arguments behind it;
    ``within``: all of an answer is calls.
    """

    opening: str = ""
    closing: str = ""
    between: str = ""
    bare: re.Pattern[str] | None = None
    named: bool = False
    within: bool = False


class Form(Enum):
    """How a model writes calls."""

    HERMES = _Marks("<tool_call>", "</tool_call>")
    LLAMA = _Marks("<|python_tag|>", between=";", bare=re.compile(r"\s*\{"))
    MISTRAL = _Marks("[TOOL_CALLS]", between="[],", bare=re.compile(r"\s*\[\s*\{"), named=True)
    LIST = _Marks(between="[],", within=True)
    ARGUMENTS = _Marks(within=True)


_ELSEWHERE = ("<function=", "<arg_key>", "<parameter")
"""Of Qwen3-Coder, GLM and others, which put something else than JSON into the marks of Hermes."""
_LLAMAS = ("<|python_tag|>", '"name": function name')
_ARGUMENTS = ("arguments", "parameters")
_LONGEST_NAME = 200


def form_of(template: str) -> Form | None:
    """The form that a chat template asks the model for, by the marks in it; None where it is none of these."""
    if Form.MISTRAL.value.opening in template:
        return Form.MISTRAL
    if Form.HERMES.value.opening in template and not any(mark in template for mark in _ELSEWHERE):
        return Form.HERMES
    return Form.LLAMA if any(mark in template for mark in _LLAMAS) else None


class Call(Struct, frozen=True):
    """A part of call ``index``: the first has ``id`` and ``name``; the ``arguments`` of all parts, one after the other, are
    JSON as the model wrote it."""

    index: int
    arguments: str
    id: str = ""
    name: str = ""


class Said(Struct, frozen=True):
    """What is told of a stretch of an answer: text for a person, and parts of calls."""

    content: str = ""
    calls: tuple[Call, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.calls)

    def joined(self, other: "Said") -> "Said":
        """With what comes after; each call in one part."""
        whole = {each.index: each for each in self.calls}
        for part in other.calls:
            held = whole.get(part.index, Call(part.index, "", part.id, part.name))
            whole[part.index] = Call(held.index, held.arguments + part.arguments, held.id, held.name)
        return Said(self.content + other.content, tuple(whole.values()))


class Reader:
    """Hears one answer in ``form``. ``names`` are those of the tools, ``fresh`` makes ids of calls.

    Not ``parallel``: of several calls the first counts. ``named`` is the tool whose arguments the answer is (Form.ARGUMENTS).

    Text that may be the beginning of a call is held back until it is known. An object that names no tool is text where nothing
    marks it as a call: a model that is asked for JSON may answer so.
    """

    def __init__(
        self, form: Form, names: frozenset[str], fresh: Callable[[], str], *, parallel: bool = True, named: str = ""
    ) -> None:
        self._marks = form.value
        self._names, self._fresh, self._parallel = names, fresh, parallel
        self._within, self._bare = self._marks.within, False
        self._call = _Call(named) if named else None
        self._told = False
        """Whether the call under way has been begun to be told."""
        self._held = ""
        self._raw = ""
        """What is text if it turns out to be no call."""
        self._blank, self._opens = True, True
        """Nothing but blanks has come: since the last call; of the whole answer."""
        self._count = self._section = 0
        """Calls that were told; that were read since the last mark."""
        self._ended = False
        """All that comes from now on is no call."""
        self._said = Said()

    @property
    def called(self) -> bool:
        """Whether a call has been told."""
        return self._count > 0 or self._told

    def hear(self, text: str) -> Said:
        """What is known by now."""
        self._held, self._said = self._held + text, Said()
        while self._held and self._step():
            pass
        return self._said

    def end(self) -> Said:
        """What is left to tell when nothing more comes."""
        self._said = Said()
        rest = self._raw + self._held
        dropped = self._call is not None and self._count and not self._parallel
        if not (self._told or dropped or (rest.isspace() and self.called) or (self._within and self._section)):
            self._text(rest)
        self._held = self._raw = ""
        return self._said

    def _step(self) -> bool:
        """Take something of what is held; whether there may be more to take."""
        if self._ended:
            self._text("" if self._count else self._held)
            self._held = ""
            return False
        if self._call:
            return self._reads(self._call)
        return self._among() if self._within else self._outside()

    def _outside(self) -> bool:
        """In text: what comes before a mark can be told."""
        opening, held = self._marks.opening, self._held
        if self._opens and self._marks.bare and self._marks.bare.match(held):
            self._bare = True
            self._enter("", held)
            return True
        if (place := held.find(opening)) >= 0:
            self._text("" if held[:place].isspace() and self._blank else held[:place])
            self._enter(opening, held[place + len(opening) :])
            return True
        if self._opens and self._marks.bare and not held.strip("[ \t\r\n"):
            return False
        keep = len(held) - begun(held, opening)
        if self._blank and not held[:keep].strip():
            return False
        self._text(held[:keep])
        self._held = held[keep:]
        return False

    def _enter(self, mark: str, rest: str) -> None:
        self._within, self._section, self._raw, self._held = True, 0, mark, rest

    def _among(self) -> bool:
        """Between marks and calls."""
        rest = self._held.lstrip()
        self._skip(len(self._held) - len(rest))
        marks = [mark for mark in (self._marks.closing, self._marks.opening) if mark]
        if mark := next((mark for mark in marks if rest.startswith(mark)), ""):
            self._skip(len(mark))
            if mark == self._marks.closing and self._section:
                self._leave()
            return True
        if not rest or any(mark.startswith(rest) for mark in marks):
            return False
        if rest[0] in self._marks.between:
            self._skip(1)
            return True
        if rest[0] == "{":
            self._call = _Call()
            return True
        return self._by_name(rest) if self._may_be_named(rest) else self._gives_up()

    def _may_be_named(self, rest: str) -> bool:
        by_name = self._marks.named and not self._bare and re.match(r"\w", rest)
        return bool(by_name) and len(rest.partition("{")[0]) <= _LONGEST_NAME

    def _by_name(self, rest: str) -> bool:
        name, brace, _ = rest.partition("{")
        if brace:
            self._skip(len(name))
            self._call = _Call(name.partition("[")[0].strip())
        return bool(brace)

    def _gives_up(self) -> bool:
        """What comes is no call: it is text, and so is what was taken for the beginning of calls where there were none."""
        self._text("" if self._section else self._raw)
        self._ended = self._marks.within  # no mark comes that could begin another call
        self._leave()
        return True

    def _skip(self, count: int) -> None:
        self._raw, self._held = self._raw + self._held[:count], self._held[count:]

    def _leave(self) -> None:
        self._within, self._bare, self._raw, self._blank = self._marks.within, False, "", self.called

    def _reads(self, call: "_Call") -> bool:
        """Go on with a call."""
        used = call.feed(self._held)
        if not self._told:
            self._raw += self._held[:used]
        self._held = self._held[used:]
        if (call.done and not call.name) or (self._bare and call.name and call.name not in self._names):
            self._call = None
            self._text(self._raw)
            self._leave()
            return True
        self._tell(call)
        if call.done:
            self._count += self._told
            self._section += 1
            self._call, self._told, self._raw = None, False, ""
        return True

    def _tell(self, call: "_Call") -> None:
        if not call.name or (self._count and not self._parallel):
            return
        arguments = call.news()
        if not self._told:
            self._told = True
            self._tells(Call(self._count, arguments, self._fresh(), call.name))
        elif arguments:
            self._tells(Call(self._count, arguments))

    def _tells(self, part: Call) -> None:
        self._said = Said(self._said.content, (*self._said.calls, part))

    def _text(self, text: str) -> None:
        if text:
            self._said = Said(self._said.content + text, self._said.calls)
            self._blank = self._opens = False


class _Call(Struct):
    """One object with a tool's name and its arguments, read as it comes; or, where ``name`` is known, the arguments alone.

    It is cut by its brackets and quotes, and is not otherwise looked into: what is wrong JSON stays so.
    """

    name: str = ""
    done: bool = False
    _depth: int = 0
    _key: str = ""
    _part: list[str] = field(default_factory=list[str])
    _new: str = ""
    """Of the arguments, what was not told yet."""
    _any: bool = False
    _quoted: bool = False
    _escaped: bool = False
    _alone: bool = False
    _streams: bool = False
    """Whether what comes now is the arguments, as an object or a list."""

    def __post_init__(self) -> None:
        if self.name:
            self._depth, self._key, self._alone = 1, _ARGUMENTS[0], True

    def feed(self, text: str) -> int:
        """How many characters of ``text`` are its own."""
        for place, letter in enumerate(text):
            self._take(letter)
            if self.done:
                return place + 1
        return len(text)

    def news(self) -> str:
        """The arguments since last time."""
        if self.done and not self._any and not self._new:
            self._new = "{}"
        told = self._new.rstrip()
        self._new = self._new[len(told) :]
        self._any = self._any or bool(told)
        return told

    def _take(self, letter: str) -> None:
        if self._quoted:
            self._keep(letter)
            self._quoted = self._escaped or letter != '"'
            self._escaped = letter == "\\" and not self._escaped
            return
        if self._depth == 1 and letter in ":,":
            self._ends_key() if letter == ":" else self._ends_value()
            return
        if letter in "{[":
            self._depth += 1
            if self._depth == 1:
                return
        elif letter in "}]":
            self._depth -= 1
            if self._depth == 0:
                self._ends_value()
                self.done = True
                return
        self._quoted = letter == '"'
        self._keep(letter)
        self.done = self._alone and self._depth == 1 and letter in "}]"

    def _keep(self, letter: str) -> None:
        if self._streams:
            self._new += letter
        elif self._key in _ARGUMENTS and letter in "{[" and not "".join(self._part).strip():
            self._streams, self._any = True, True
            self._new += letter
        else:
            self._part.append(letter)

    def _ends_key(self) -> None:
        key = _value("".join(self._part))
        self._key = key if isinstance(key, str) else ""
        self._part.clear()

    def _ends_value(self) -> None:
        text = "".join(self._part).strip()
        value = _value(text)
        if self._key == "name" and isinstance(value, str):
            self.name = value
        elif self._key in _ARGUMENTS and not self._streams and value is not None:
            self._new += value if isinstance(value, str) else text  # some models write the arguments' JSON as a text
        self._key, self._streams = "", False
        self._part.clear()


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
