"""Puts a conversation into a model's own chat template, as transformers would, without transformers."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

from msgspec import Struct

from forge.client.openings import opening
from forge.client.renderer_process import Bounds, DiedError, RendererProcess
from forge.errors import InferenceError
from forge.files import texts
from forge.schema.values import LimitsTable

Message = tuple[str, str]
"""(role, text); the roles are those of the template: mostly system, user and assistant."""
Part = Mapping[str, str]
"""A piece of a message: ``{"type": "image"}``, in whose place the template writes its mark, or a text."""
Turn = tuple[str, str | Sequence[Part]] | Mapping[str, object]
"""A message that may have images: (role, text or parts); or all that a template may read of it: its calls of tools, too."""
_OWN = "chat_template.jinja"
_KEY = "chat_template"
_WITH_TOOLS = "tool_use"
"""What transformers calls the template for conversations with tools, where a tokenizer has several."""
_FILES = (_OWN, "chat_template.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
_FIX = "look at chat_template in the model's checkpoint, and ask its author"
_BLIND = "it seems to know no images: does this model see?"
_AGAIN = "build the model again; if that does not help, its checkpoint is broken"
_USUAL = LimitsTable()
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate(Struct, frozen=True, dict=True):
    """A tokenizer folder's template with the special tokens that it may name.

    Templates come with downloaded models: each is rendered in a process of its own, within ``limits``.
    """

    source: str
    tokens: Mapping[str, str]
    opening: str = ""
    """The token that the tokenizer puts before every text; a template that writes it too would double it."""
    where: str = ""
    limits: LimitsTable = _USUAL

    @classmethod
    def of(cls, folder: Path, limits: LimitsTable = _USUAL, *, tools: bool = False) -> "ChatTemplate":
        """The template of the tokenizer in ``folder``, for conversations with ``tools`` the one for those where there are two;
        InferenceError where there is none to use."""
        settings = _json(folder / "tokenizer_config.json")
        tokens = _json(folder / "special_tokens_map.json") | settings
        named = {name: text for name in _SPECIAL if (text := _text(tokens.get(name)))}
        return cls(
            _source(folder, settings, _WITH_TOOLS if tools else ""),
            named,
            _opening(folder, settings, named),
            str(folder),
            limits,
        )

    def render(
        self, messages: Sequence[Turn], tools: Sequence[Mapping[str, object]] = (), *, add_generation_prompt: bool = True
    ) -> str:
        """The whole text, special tokens written out; the model is shown ``tools``, as OpenAI's API states them.

        InferenceError when the template refuses the messages, fails, or takes more time, memory or room than it may.
        """
        conversation = [_message(turn) for turn in messages]
        values = {
            "messages": conversation,
            "tools": tools or None,
            "add_generation_prompt": add_generation_prompt,
            **self.tokens,
        }
        try:
            answer = self._process.render(values)
        except DiedError as error:
            raise self._late() if error.late else self._failed(f"its process ended: {error.how}") from error
        match answer:
            case {"text": str(text)}:
                return text
            case {"unreadable": why}:
                raise InferenceError(f"the chat template cannot be read: {why}", where=self.where, hint=_FIX)
            case {"refused": why}:
                what = f"the chat template refuses these messages: {why}"
                hint = "some templates know no system message, or want user and assistant in turn"
                raise InferenceError(what, where=self.where, hint=hint)
            case {"long": _}:
                what = f"the chat template makes more than {self.limits.max_body_bytes} characters of these messages"
                raise InferenceError(what, where=self.where, hint=f"{_FIX}; limits.max_body_bytes of the recipe allows more")
            case {"memory": _}:
                raise self._failed(f"it wants more than {self._bounds.memory // 2**20} MiB of memory")
            case _:
                shown = any(not isinstance(message["content"], str) for message in conversation)
                raise self._failed(str(answer.get("failed")), _BLIND if shown else _FIX)

    def prompt(self, messages: Sequence[Turn], tools: Sequence[Mapping[str, object]] = ()) -> str:
        """The text to send for the model to answer: without the opening token that its tokenizer adds."""
        return self.render(messages, tools).removeprefix(self.opening)

    @cached_property
    def _process(self) -> RendererProcess:
        return RendererProcess(self.source, self._bounds)

    @property
    def _bounds(self) -> Bounds:
        return Bounds(self.limits.max_template_seconds, self.limits.max_body_bytes)

    def _late(self) -> InferenceError:
        what = f"the chat template is not done with these messages after {self.limits.max_template_seconds:g} s, and was ended"
        return InferenceError(what, where=self.where, hint=f"{_FIX}; limits.max_template_seconds of the recipe allows more")

    def _failed(self, why: str, hint: str = _FIX) -> InferenceError:
        return InferenceError(f"the chat template fails on these messages: {why}", where=self.where, hint=hint)


def _message(turn: Turn) -> Mapping[str, object]:
    return turn if isinstance(turn, Mapping) else {"role": turn[0], "content": turn[1]}


def asked(text: str, images: int) -> str | tuple[Part, ...]:
    """A user's message with so many images before its text; the text alone where there are none."""
    return (*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}) if images else text


def lacking(folder: Path) -> str:
    """Why the tokenizer in ``folder`` has no template to use; empty where it has one. Nothing is rendered."""
    try:
        _source(folder, _json(folder / "tokenizer_config.json"))
    except InferenceError as error:
        return error.what.removeprefix("this model has ")
    return ""


class Unreadable(Struct, frozen=True):
    """A template that jinja cannot read: in which ``line`` of which ``file`` of the folder, from 1, and why."""

    file: str
    line: int
    why: str


def unreadable(folder: Path, settings: Mapping[str, object]) -> Unreadable | None:
    """What is wrong with the template that a folder's tokenizer is used with; None where it can be read, where there is none,
    and where that cannot be found out. ``settings`` is what tokenizer_config.json holds."""
    try:
        source = _source(folder, settings)
        answer = RendererProcess(source, Bounds(_USUAL.max_template_seconds, _USUAL.max_body_bytes)).read()
    except (InferenceError, DiedError, OSError):
        return None
    if "unreadable" not in answer:
        return None
    line, why = int(str(answer["line"])), str(answer["why"])
    if (folder / _OWN).is_file():
        return Unreadable(_OWN, line, why)
    file = "tokenizer_config.json" if settings.get(_KEY) else "chat_template.json"
    before, _, _ = (folder / file).read_text(encoding="utf-8").partition(f'"{_KEY}"')
    return Unreadable(file, before.count("\n") + 1, f"{why} (line {line} of the template)")


class ChatTemplates:
    """Those of several folders, each read again when its files change. Threads may share it."""

    def __init__(self) -> None:
        self._held: dict[Path, tuple[object, ChatTemplate]] = {}

    def prompt(self, folder: Path, messages: Sequence[Turn], limits: LimitsTable) -> str:
        """As ``ChatTemplate.prompt``, in the process of the call before."""
        state = (limits, *(_stamp(folder / name) for name in _FILES))
        stamp, held = self._held.get(folder, (None, None))
        if held is None or stamp != state:
            held = ChatTemplate.of(folder, limits)
            self._held[folder] = state, held
        return held.prompt(messages)


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _source(folder: Path, settings: Mapping[str, object], wanted: str = "") -> str:
    """A file of its own comes before tokenizer_config.json's text, or the one called ``wanted`` of its list, or "default"."""
    file = folder / _OWN
    if (text := texts.there(file, InferenceError, "the chat template", hint=_AGAIN)) is not None:
        return text
    stated = settings.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(stated, str):
        return stated
    named: dict[str, str] = {}
    for each in cast("list[object]", stated) if isinstance(stated, list) else ():
        if isinstance(each, dict):
            entry = cast("dict[str, object]", each)
            named[str(entry.get("name"))] = str(entry.get("template"))
    if found := named.get(wanted, named.get("default")):
        return found
    what = f"several chat templates and no default ({', '.join(named)})" if named else "no chat template"
    raise InferenceError(
        f"this model has {what}",
        where=str(folder),
        hint="base models have none: ask with `forge generate`, or take an instruction-tuned checkpoint",
    )


def _opening(folder: Path, settings: Mapping[str, object], tokens: Mapping[str, str]) -> str:
    """The bos token, if the tokenizer writes it before a text by itself: its post-processor says so, or its settings do."""
    bos = tokens.get("bos_token", "")
    tokenizer = _json(folder / "tokenizer.json")
    if not tokenizer:
        return bos if settings.get("add_bos_token") else ""
    return bos if bos and opening(tokenizer.get("post_processor")) == bos else ""


def _text(token: object) -> str:
    """A special token, stated as a text or as an AddedToken's dictionary."""
    if isinstance(token, dict):
        token = cast("dict[str, object]", token).get("content")
    return token if isinstance(token, str) else ""


def _json(file: Path) -> dict[str, object]:
    """The object in ``file``, empty where there is no such file."""
    return texts.table(file, InferenceError, "this file of the tokenizer", hint=_AGAIN)
