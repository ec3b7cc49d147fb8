"""Reads calls of tools out of what a model says: the forms that chat templates of well-known models ask for. Pure.

- Hermes and Qwen: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, each call within its own marks.
- Llama 3: the answer is an object with ``name`` and ``parameters``, after ``<|python_tag|>`` or bare; more follow a semicolon.
- Mistral: ``[TOOL_CALLS]`` and a list of objects; since 2025 a name with its arguments, ``[TOOL_CALLS]add{"a": 1}``.
- What a guide holds an answer to: a list of objects, or the arguments of one tool alone.
"""

import json
import re
from collections.abc import Callable, Iterator
from enum import Enum
from typing import cast

from msgspec import Struct

from forge.client.stops import begun


class _Marks(Struct, frozen=True):
    """``opening`` comes before calls, ``between`` is what stands among them; ``bare``: how an answer begins that is calls
    without marks, and ``perhaps`` how one that may be.

    ``by_name``: a call may be a name with its arguments behind it.
    """

    opening: str
    between: re.Pattern[str]
    bare: re.Pattern[str] | None = None
    perhaps: re.Pattern[str] = re.compile(r"\s*")
    by_name: bool = False


class Form(Enum):
    """How a model writes calls."""

    HERMES = _Marks("<tool_call>", re.compile(r"(?:\s|</?tool_call>)+"))
    LLAMA = _Marks("<|python_tag|>", re.compile(r"(?:\s|;|<\|python_tag\|>)+"), re.compile(r"\s*\{"))
    MISTRAL = _Marks(
        "[TOOL_CALLS]",
        re.compile(r"(?:\[TOOL_CALLS\]|[\s\[\],])+"),
        re.compile(r"\s*\[\s*\{"),
        re.compile(r"[\s\[]*"),
        by_name=True,
    )
    LIST = _Marks("", re.compile(r"[\s\[\],]+"))
    ARGUMENTS = _Marks("", re.compile(r"\s+"))


_ELSEWHERE = ("<function=", "<arg_key>", "<parameter")
"""Of Qwen3-Coder, GLM and others, which put something else than JSON into the marks of Hermes."""
_LLAMAS = ("<|python_tag|>", '"name": function name')
_NAMED = re.compile(r"(\w[^\[{]{0,199})(?:\[ARGS\])?\s*(?=\{)")
_JSON = json.JSONDecoder()


def form_of(template: str) -> Form | None:
    """The form that a chat template asks the model for, by the marks in it; None where it is none of these."""
    if Form.MISTRAL.value.opening in template:
        return Form.MISTRAL
    if Form.HERMES.value.opening in template and not any(mark in template for mark in _ELSEWHERE):
        return Form.HERMES
    return Form.LLAMA if any(mark in template for mark in _LLAMAS) else None


class Call(Struct, frozen=True):
    """Call ``index``; the ``arguments`` are JSON."""

    index: int
    arguments: str
    id: str
    name: str


class Said(Struct, frozen=True):
    """What is told of a stretch of an answer: text for a person, and calls."""

    content: str = ""
    calls: tuple[Call, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.calls)

    def joined(self, other: "Said") -> "Said":
        """With what comes after."""
        return Said(self.content + other.content, self.calls + other.calls)


class Reader:
    """Hears one answer in ``form``. ``names`` are those of the tools, ``fresh`` makes ids of calls.

    Not ``parallel``: of several calls the first counts. ``named`` is the tool whose arguments the answer is (Form.ARGUMENTS).

    Text is told as it comes; what begins a call, or may, waits for the end, and all that follows it. What is no call then is
    text; so is an object that names no tool, where nothing marks it as a call: a model that is asked for JSON may answer so.
    """

    def __init__(
        self, form: Form, names: frozenset[str], fresh: Callable[[], str], *, parallel: bool = True, named: str = ""
    ) -> None:
        self._marks = form.value
        self._names, self._fresh, self._parallel, self._named = names, fresh, parallel, named
        self._held = ""
        self._waits, self._told = not self._marks.opening, False
        self.called = False
        """Whether a call has been told."""

    def hear(self, text: str) -> Said:
        """What is known by now."""
        self._held += text
        place = 0 if self._waits else self._begins()
        said, self._held = self._held[:place], self._held[place:]
        self._told = self._told or bool(said)
        return Said(said)

    def _begins(self) -> int:
        """Where something begins that is a call, or may be one."""
        held, marks = self._held, self._marks
        if not self._told and marks.bare and marks.bare.match(held):
            self._waits = True
            return 0
        place = held.find(marks.opening)
        self._waits = place >= 0
        place = place if self._waits else len(held) - begun(held, marks.opening)
        blank = not held[:place].strip() or (marks.bare and marks.perhaps.fullmatch(held))
        return 0 if blank and not self._told else place

    def end(self) -> Said:
        """What is left to tell when nothing more comes."""
        text, self._held = self._held, ""
        found = list(self._found(text)) if self._waits else []
        calls = [each for each in found if isinstance(each, tuple)][: None if self._parallel else 1]
        self.called = bool(calls)
        if not calls:
            return Said(text)
        rest = "".join(each for each in found if isinstance(each, str))
        return Said(rest, tuple(Call(at, arguments, self._fresh(), name) for at, (name, arguments) in enumerate(calls)))

    def _found(self, text: str) -> Iterator[tuple[str, str] | str]:
        """Names with arguments, and the texts that are no calls."""
        if self._named:
            yield (self._named, text.strip()) if text.strip() else text
            return
        bare = bool(self._marks.bare) and not text.lstrip().startswith(self._marks.opening)
        while text:
            between = self._marks.between.match(text)
            text = text[between.end() :] if between else text
            name, arguments, end = self._call(text)
            if name and not (bare and name not in self._names):
                yield name, arguments
            elif text:
                place = text.find(self._marks.opening, 1) if self._marks.opening else -1
                end = place if place > 0 else len(text)
                yield text[:end]
            text = text[end:]

    def _call(self, text: str) -> tuple[str, str, int]:
        """Name, arguments and length of the call at the beginning; no name where there is none."""
        named = _NAMED.match(text) if self._marks.by_name else None
        try:
            value, end = _JSON.raw_decode(text, named.end() if named else 0)
        except (ValueError, RecursionError):
            return "", "", 0
        if named:
            return named[1].strip(), text[named.end() : end], end
        stated = cast("dict[str, object]", value) if isinstance(value, dict) else {}
        name = stated.get("name")
        if not isinstance(name, str):
            return "", "", 0
        given = stated.get("arguments", stated.get("parameters", {}))  # some models write the arguments' JSON as a text
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        return _whole(name), _whole(arguments), end


def _whole(text: str) -> str:
    """Without halves of a character (``\\ud83d`` alone), which JSON can write and no answer can carry."""
    return text.encode(errors="replace").decode()
