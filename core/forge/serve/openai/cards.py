"""What the page says of each model that is offered: what it stands on, what it holds, and which of its controls it knows."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress

import msgspec
from msgspec import Struct

from forge.client.stops import total
from forge.client.tensors import offers
from forge.client.types import ModelMetadata
from forge.errors import ForgeError
from forge.files import texts
from forge.schema.values import Gpu, RuntimeKind
from forge.serve.as_built import limits, version
from forge.serve.openai.api_errors import Fault
from forge.serve.openai.models import Models, Offer
from forge.serve.openai.rounds import Rounds, State
from forge.serve.usage import Held
from forge.serve.vitals import Memory


class _Table(Struct):
    """cards.toml."""

    words: dict[str, str]
    runtimes: dict[RuntimeKind, str]
    lacking: dict[RuntimeKind, dict[str, str]]


_TABLE = texts.shipped("forge.serve.openai", "cards.toml", _Table)
WORDS = _TABLE.words
"""A field of the API -> the word of a Request that stands for it."""


class Card(Struct, frozen=True, kw_only=True):
    """One model. ``controls``: each field of the API with why the model cannot obey it, empty where it can."""

    name: str
    runtime: str
    version: str
    state: str
    why: str
    published: int
    key: str
    disk: int
    """Bytes of its weights and tokenizer in the repository."""
    memory: Memory
    built: Mapping[str, int]
    sampling: Mapping[str, object]
    """The recipe's, what it leaves open too."""
    chat: str
    """Why it cannot chat; empty where it has a chat template."""
    controls: Mapping[str, str]


class Machine(Struct, frozen=True, kw_only=True):
    """What all models share. ``memory`` is all of this machine's, ``held`` what the server's processes hold of it."""

    memory: int | None
    held: Memory
    gpus: tuple[Gpu, ...]
    triton: str


class _Document(Struct, frozen=True, kw_only=True):
    machine: Machine
    models: tuple[Card, ...]


class Sight(Struct, frozen=True, kw_only=True):
    """What is seen of this machine and of the server's processes."""

    memory: int | None
    gpus: tuple[Gpu, ...]
    held: Held


class Cards(Struct, frozen=True):
    """``look`` sees the machine, ``known`` says what a model takes, ``triton`` which Triton answers."""

    offers: Models
    rounds: Rounds
    look: Callable[[], Sight]
    known: Callable[[Offer], Awaitable[ModelMetadata]]
    triton: Callable[[], Awaitable[str]]

    async def document(self) -> bytes:
        """All of them, by name."""
        states, sight = await asyncio.gather(self.rounds.states(), asyncio.to_thread(self.look))
        cards = [await self._card(name, offer, sight, states[name]) for name, offer in self.offers.all().items()]
        machine = Machine(memory=sight.memory, held=sight.held.whole, gpus=sight.gpus, triton=await self._version())
        return msgspec.json.encode(_Document(machine=machine, models=tuple(cards)))

    async def _version(self) -> str:
        with suppress(ForgeError):
            return await self.triton()
        return ""

    async def _card(self, name: str, offer: Offer, sight: Sight, held: State) -> Card:
        target, model = offer.target, offer.target.model
        built = limits(target.repository, model)
        try:
            known = await self.known(offer)
        except Fault:  # it is not ready: nobody knows what it takes
            known = ModelMetadata(model.front, {}, {})
        parts = [sight.held.models[folder] for folder in model.roles.values() if folder in sight.held.models]
        return Card(
            name=name,
            runtime=_TABLE.runtimes[model.runtime],
            version=known.vllm or version(target.repository, model),
            state=held.state,
            why=held.why,
            published=offer.published,
            key=offer.key,
            disk=self.offers.size(offer),
            memory=Memory(host=total(part.host for part in parts), gpu=total(part.gpu for part in parts)),
            built=built,
            sampling=msgspec.structs.asdict(model.sampling),
            chat=self.offers.without_template(offer),
            controls=dict(controls(known, model.runtime, built)),
        )


def controls(known: ModelMetadata, runtime: RuntimeKind, built: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Each field of the API with why a model that takes ``known`` cannot obey it, empty where it can."""
    for field, word in WORDS.items():
        yield field, _why_not(field, word, known, runtime, built)


def _why_not(field: str, word: str, known: ModelMetadata, runtime: RuntimeKind, built: Mapping[str, int]) -> str:
    if not known.inputs:
        return "the model is not ready, so nobody knows what it takes"
    if field == "beam_width" and built.get("max_beam_width") == 1:
        return "it was built for one beam: build.max_beam_width of its recipe allows more"
    if not offers(word, known):
        return _TABLE.lacking.get(runtime, {}).get(field, "this model has no input for it")
    sums = field == "logprobs" and runtime is RuntimeKind.LLMAPI
    return "models of llmapi tell the sum over an answer, and not of its tokens" if sums else ""
