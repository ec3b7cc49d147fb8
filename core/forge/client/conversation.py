"""A talk with a served model: what was said, and what was changed about it on the way. Others ask and show."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct, field

from forge.client.chat_template import Message
from forge.errors import near

_MARKS = ("/exit", "/quit", "/q")
"""Other words for /bye."""


class Conversation(Struct):
    """``settings`` are the sampling options that commands have set, by the names of a Request."""

    system: str = ""
    turns: list[Message] = field(default_factory=list[Message])
    settings: dict[str, object] = field(default_factory=dict[str, object])
    ended: bool = False
    again: str = ""
    """The question that /retry wants asked once more."""

    @property
    def messages(self) -> list[Message]:
        """All that goes into the chat template."""
        return [("system", self.system), *self.turns] if self.system else list(self.turns)

    def retract(self) -> str:
        """Take back the last question and what was answered; the question."""
        while self.turns:
            role, text = self.turns.pop()
            if role == "user":
                return text
        return ""

    def command(self, line: str) -> str:
        """Do what a line beginning with ``/`` says; what there is to say of it."""
        name, _, rest = line.strip().partition(" ")
        word = "/bye" if name.lower() in _MARKS else name.lower()
        if word in COMMANDS:
            return COMMANDS[word].do(self, rest.strip())
        close = near(word, COMMANDS)
        return f"there is no {name}; " + (f"did you mean {close}?" if close else "/help shows what there is")

    def text(self) -> str:
        """The talk for a person to read."""
        return "".join(f"{role}: {said}\n\n" for role, said in self.messages)


def _clear(talk: Conversation, _: str) -> str:
    talk.turns.clear()
    return "what was said is forgotten"


def _instruct(talk: Conversation, text: str) -> str:
    talk.system = text
    return "it holds from the next question on" if text else "no system text"


def _warm(talk: Conversation, text: str) -> str:
    return _set(talk, "temperature", text, float, lambda value: 0 <= value < float("inf"), "a number from 0 on")


def _sow(talk: Conversation, text: str) -> str:
    return _set(talk, "seed", text, int, lambda value: 0 <= value < 2**64, "a whole number below 2**64")


def _set(
    talk: Conversation, name: str, text: str, kind: type[float] | type[int], fits: Callable[[float], bool], allowed: str
) -> str:
    if not text:
        talk.settings.pop(name, None)
        return f"{name}: as it was"
    with suppress(ValueError):
        if fits(value := kind(text)):
            talk.settings[name] = value
            return f"{name}: {value}"
    return f"{name}: found {text!r}; allowed: {allowed}"


def _retry(talk: Conversation, _: str) -> str:
    talk.again = talk.retract()
    return "" if talk.again else "nothing was asked yet"


def _save(talk: Conversation, text: str) -> str:
    if not text:
        return "name a file: /save talk.txt"
    file = Path(text).expanduser()
    said = [{"role": role, "content": words} for role, words in talk.messages]
    whole = json.dumps(said, ensure_ascii=False, indent=2) + "\n" if file.suffix == ".json" else talk.text()
    try:
        with file.open("x", encoding="utf-8") as sink:
            sink.write(whole)
    except FileExistsError:
        return f"{file} is there already; choose another name"
    except OSError as error:
        return f"{file}: {error.strerror}"
    return f"{file}: written"


def _end(talk: Conversation, _: str) -> str:
    talk.ended = True
    return ""


def _help(_: Conversation, __: str) -> str:
    return overview()


class Command(Struct, frozen=True):
    """What follows its name, what it is for, and what it does with that: it gives what there is to say."""

    argument: str
    told: str
    do: Callable[[Conversation, str], str]


COMMANDS = {
    "/clear": Command("", "forget what was said; the system text stays", _clear),
    "/system": Command("TEXT", "instructions before the talk; alone: none any more", _instruct),
    "/temperature": Command("X", "0 takes the likeliest token; alone: the recipe's again", _warm),
    "/seed": Command("N", "the same seed, the same answer; alone: a new one each time", _sow),
    "/retry": Command("", "ask the last question again", _retry),
    "/save": Command("FILE", "write the talk down, as JSON where FILE ends in .json", _save),
    "/help": Command("", "these commands", _help),
    "/bye": Command("", "end the talk, as Ctrl-D does", _end),
}


def overview() -> str:
    """What can be typed."""
    rows = [(f"{name} {each.argument}".strip(), each.told) for name, each in COMMANDS.items()]
    rows += [('"""', "begin a text of several lines; the same ends it"), ("//...", "a text that begins with one slash")]
    rows += [("Ctrl-C", "end the answer that is coming")]
    return "\n".join(f"  {typed:<16}{told}" for typed, told in rows)
