"""A talk with a served model: what was said, and what was changed about it on the way. Others ask and show."""

import json
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from msgspec import Struct, field

from forge.client.chat_template import Message

COMMANDS = {
    "/clear": ("", "forget what was said; the system text stays"),
    "/system": ("TEXT", "instructions before the talk; alone: none any more"),
    "/temperature": ("X", "0 takes the likeliest token; alone: the recipe's again"),
    "/seed": ("N", "the same seed, the same answer; alone: a new one each time"),
    "/retry": ("", "ask the last question again"),
    "/save": ("FILE", "write the talk down, as JSON where FILE ends in .json"),
    "/help": ("", "these commands"),
    "/bye": ("", "end the talk, as Ctrl-D does"),
}
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
        word, text = name.lower(), rest.strip()
        known: dict[str, Callable[[str], str]] = {
            "/clear": self._clear,
            "/system": self._instruct,
            "/temperature": self._warm,
            "/seed": self._sow,
            "/retry": self._retry,
            "/save": self._save,
            "/help": lambda _: overview(),
            "/bye": self._end,
            **dict.fromkeys(_MARKS, self._end),
        }
        if word in known:
            return known[word](text)
        close = get_close_matches(word, COMMANDS, 1)
        return f"there is no {name}" + (f"; did you mean {close[0]}?" if close else "; /help shows what there is")

    def text(self) -> str:
        """The talk for a person to read."""
        return "".join(f"{role}: {said}\n\n" for role, said in self.messages)

    def _clear(self, _: str) -> str:
        self.turns.clear()
        return "what was said is forgotten"

    def _instruct(self, text: str) -> str:
        self.system = text
        return "it holds from the next question on" if text else "no system text"

    def _warm(self, text: str) -> str:
        return self._set("temperature", text, float, lambda value: 0 <= value < float("inf"), "a number from 0 on")

    def _sow(self, text: str) -> str:
        return self._set("seed", text, int, lambda value: 0 <= value < 2**64, "a whole number below 2**64")

    def _set(self, name: str, text: str, kind: type[float] | type[int], fits: Callable[[float], bool], allowed: str) -> str:
        if not text:
            self.settings.pop(name, None)
            return f"{name}: as it was"
        try:
            value = kind(text)
        except ValueError:
            return f"{name}: found {text!r}; allowed: {allowed}"
        if not fits(value):
            return f"{name}: found {text!r}; allowed: {allowed}"
        self.settings[name] = value
        return f"{name}: {value}"

    def _retry(self, _: str) -> str:
        self.again = self.retract()
        return "" if self.again else "nothing was asked yet"

    def _save(self, text: str) -> str:
        if not text:
            return "name a file: /save talk.txt"
        file = Path(text).expanduser()
        said = [{"role": role, "content": words} for role, words in self.messages]
        whole = json.dumps(said, ensure_ascii=False, indent=2) + "\n" if file.suffix == ".json" else self.text()
        try:
            with file.open("x", encoding="utf-8") as sink:
                sink.write(whole)
        except FileExistsError:
            return f"{file} is there already; choose another name"
        except OSError as error:
            return f"{file}: {error.strerror}"
        return f"{file}: written"

    def _end(self, _: str) -> str:
        self.ended = True
        return ""


def overview() -> str:
    """What can be typed."""
    rows = [(f"{name} {argument}".strip(), told) for name, (argument, told) in COMMANDS.items()]
    rows += [('"""', "begin a text of several lines; the same ends it"), ("//...", "a text that begins with one slash")]
    rows += [("Ctrl-C", "end the answer that is coming")]
    return "\n".join(f"  {typed:<16}{told}" for typed, told in rows)
