"""The models that are offered, as the repositories' manifests say at the moment: a build on one that is served is seen."""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from forge.client.chat_template import ChatTemplate, Turn, lacking
from forge.client.tokenizer import TokenizerFolder
from forge.client.types import Request
from forge.errors import ForgeError
from forge.repository import publish
from forge.schema import manifest
from forge.schema.adapters import BETWEEN
from forge.schema.values import LimitsTable
from forge.serve.lookup import Target, size
from forge.serve.openai.api_errors import Fault, unknown_model, waiting

_Stamp = tuple[int, int, int]
_PATIENCE = 30.0
"""Seconds that a conversation waits for its turn at a chat template, which others ask as well."""


class Offer(Struct, frozen=True, dict=True):
    """One model that is offered; ``published`` in seconds since 1970."""

    target: Target
    published: int

    @property
    def key(self) -> str:
        """Another one when it was built anew."""
        return self.target.model.entry

    @cached_property
    def usual(self) -> Request:
        """What its recipe asks for, without a prompt; an engine's end tokens are read out of its checkpoint's files for it."""
        return self.target.request("")

    @property
    def limits(self) -> LimitsTable:
        """What its recipe lets one request ask."""
        return self.target.model.limits


class Models:
    """The models of ``repositories``, all behind one server at ``address``."""

    def __init__(self, address: str, repositories: Sequence[Path]) -> None:
        self._address = address
        self._repositories = repositories
        self._files = tuple(str(place / manifest.NAME) for place in repositories)
        self._stamps: tuple[_Stamp, ...] = ()
        self._held: dict[str, Offer] = {}
        self._templates: dict[str, _Templates] = {}
        self._tokenizers: dict[str, TokenizerFolder] = {}
        self._sizes: dict[str, int] = {}

    def all(self) -> dict[str, Offer]:
        """By name."""
        stamps = tuple(map(_stamp, self._files))
        if stamps != self._stamps:
            self._held = {
                name: Offer(target, stamp[0] // 10**9)
                for place, stamp in zip(self._repositories, stamps, strict=True)
                for model in publish.inventory(place).models
                for name, target in _named(Target(self._address, model, place))
            }
            keys = {offer.key for offer in self._held.values()}
            self._templates = {key: held for key, held in self._templates.items() if key in keys}
            self._tokenizers = {key: held for key, held in self._tokenizers.items() if key in keys}
            self._stamps = stamps
        return self._held

    def find(self, name: str) -> Offer:
        """Fault where it is not offered."""
        offered = self.all()
        if name not in offered:
            raise unknown_model(name, tuple(offered))
        return offered[name]

    async def templated(self, offer: Offer, conversation: Sequence[Turn], tools: Sequence[Mapping[str, object]] = ()) -> str:
        """``conversation`` in the model's chat template, with ``tools`` as that takes them; Fault where it has none, it refuses
        them, or takes too long."""
        return await self._asked(offer, lambda held: held.prompt(conversation, tools))

    async def template(self, offer: Offer) -> str:
        """The text of the chat template for conversations with tools; Fault where it has none."""
        return await self._asked(offer, lambda held: held.source)

    async def _asked(self, offer: Offer, ask: Callable[["_Templates"], str]) -> str:
        """What the model's chat templates answer, in their own thread."""
        if offer.key not in self._templates:
            self._templates[offer.key] = _Templates(offer)
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._templates[offer.key].ask(ask)
        except TimeoutError as error:
            raise waiting(offer.target.model.name) from error
        except ForgeError as error:
            said = f"{error.what} ({error.hint})" if error.hint else error.what
            raise Fault(400, said, param="messages") from error

    def count(self, offer: Offer, text: str, *, prompt: bool) -> int:
        """Tokens of ``text`` by the model's tokenizer; 0 where it has none that can be read here."""
        held = self._tokenizers.setdefault(offer.key, TokenizerFolder(offer.target.tokenizer))
        if held.missing:
            return 0
        return held.count(text) if prompt else held.spoken(text)

    def spans(self, offer: Offer, text: str) -> tuple[tuple[str, int], ...]:
        """``text`` cut into the tokens of the model's tokenizer, with how many each piece is made of; none where it has none
        that can be read here."""
        held = self._tokenizers.setdefault(offer.key, TokenizerFolder(offer.target.tokenizer))
        return () if held.missing else held.spans(text)

    def size(self, offer: Offer) -> int:
        """Bytes of its folders."""
        if offer.key not in self._sizes:
            self._sizes[offer.key] = size(offer.target.repository, offer.target.model)
        return self._sizes[offer.key]

    def without_template(self, offer: Offer) -> str:
        """Why it has no chat template; empty where it has one."""
        return lacking(offer.target.tokenizer)


class _Templates:
    """One model's chat templates, read when they are asked for: it may have another for conversations with tools. They have a
    thread of their own: who asks another model does not wait for them."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._held: dict[bool, ChatTemplate] = {}
        self._thread = ThreadPoolExecutor(1, "template")

    async def ask(self, question: Callable[["_Templates"], str]) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._thread, question, self)

    @property
    def source(self) -> str:
        """Of the one with tools."""
        return self._template(tools=True).source

    def prompt(self, conversation: Sequence[Turn], tools: Sequence[Mapping[str, object]]) -> str:
        return self._template(tools=bool(tools)).prompt(conversation, tools)

    def _template(self, *, tools: bool) -> ChatTemplate:
        if tools not in self._held:
            read = ChatTemplate.of(self._offer.target.tokenizer, self._offer.limits, tools=tools)
            self._held[tools] = next((held for held in self._held.values() if held.source == read.source), read)
        return self._held[tools]


def _named(target: Target) -> Iterator[tuple[str, Target]]:
    """A model by its name, and with each of its adapters by both names."""
    yield target.model.name, target
    for adapter in target.adapters:
        yield f"{target.model.name}{BETWEEN}{adapter}", replace(target, lora=adapter)


def _stamp(file: str) -> _Stamp:
    """Changes whenever the file does: it is replaced, never written in place."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_ino, found.st_size
