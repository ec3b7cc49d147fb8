"""Puts a conversation into a model's own chat template, as transformers would, without transformers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import cast

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forge.errors import InferenceError

Message = tuple[str, str]
"""(role, text); the roles are those of the template: mostly system, user and assistant."""
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer folder's template with the special tokens that it may name."""

    source: str
    tokens: Mapping[str, str]
    opening: str = ""
    """The token that the tokenizer puts before every text; a template that writes it too would double it."""
    where: str = ""

    @classmethod
    def of(cls, folder: Path) -> "ChatTemplate":
        """The template of the tokenizer in ``folder``; InferenceError where there is none to use."""
        settings = _json(folder / "tokenizer_config.json")
        tokens = _json(folder / "special_tokens_map.json") | settings
        named = {name: text for name in _SPECIAL if (text := _text(tokens.get(name)))}
        return cls(_source(folder, settings), named, _opening(folder, settings, named), str(folder))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The whole text, special tokens written out; InferenceError when the template refuses the messages."""
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_refuse, strftime_now=_now)  # pyright: ignore[reportCallIssue, reportArgumentType]
        conversation = [{"role": role, "content": text} for role, text in messages]
        try:
            return environment.from_string(self.source).render(
                messages=conversation,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self.tokens,
            )
        except TemplateSyntaxError as error:
            raise InferenceError(f"the chat template cannot be read: {error}", where=self.where) from error
        except TemplateError as error:
            raise InferenceError(
                f"the chat template refuses these messages: {error}",
                where=self.where,
                hint="some templates know no system message, or want user and assistant in turn",
            ) from error

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text to send for the model to answer: without the opening token that its tokenizer adds."""
        return self.render(messages).removeprefix(self.opening)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Templates come with downloaded models: they may compute, and reach nothing."""


class _Generation(Extension):
    """``{% generation %}`` marks, for training, what the assistant said; here it only lets its body through."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own way to declare them

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _source(folder: Path, settings: Mapping[str, object]) -> str:
    """A file of its own comes before tokenizer_config.json's text, or the one called "default" of its list."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    stated = settings.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(stated, str):
        return stated
    named: dict[str, str] = {}
    for each in cast("list[object]", stated) if isinstance(stated, list) else ():
        if isinstance(each, dict):
            entry = cast("dict[str, object]", each)
            named[str(entry.get("name"))] = str(entry.get("template"))
    if "default" in named:
        return named["default"]
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
    return bos if bos and bos in _first_tokens(tokenizer.get("post_processor")) else ""


def _first_tokens(processor: object) -> tuple[str, ...]:
    """The special tokens that a post-processor of tokenizer.json puts first."""
    if not isinstance(processor, dict):
        return ()
    stated = cast("dict[str, object]", processor)
    inner = stated.get("processors")
    if isinstance(inner, list):
        return tuple(token for each in cast("list[object]", inner) for token in _first_tokens(each))
    single = stated.get("single")
    if isinstance(single, list) and single:
        first = cast("dict[str, dict[str, object]]", single[0])
        return (str(first["SpecialToken"].get("id")),) if "SpecialToken" in first else ()
    classify = stated.get("cls")
    return (str(cast("list[object]", classify)[0]),) if isinstance(classify, list) and classify else ()


def _text(token: object) -> str:
    """A special token, stated as a text or as an AddedToken's dictionary."""
    if isinstance(token, dict):
        token = cast("dict[str, object]", token).get("content")
    return token if isinstance(token, str) else ""


def _json(file: Path) -> dict[str, object]:
    """The object in ``file``, empty where there is no such file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InferenceError(f"this is not JSON: {error}", where=str(file), hint="build the model again") from error
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own would write ``<`` and ``'`` as HTML needs them, and models were trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> str:
    raise TemplateError(message)


def _now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)
