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
from forge.schema.values import Gpu, RuntimeKind
from forge.serve.as_built import limits, version
from forge.serve.openai.api_errors import Fault
from forge.serve.openai.models import Models, Offer
from forge.serve.openai.rounds import Rounds
from forge.serve.usage import Held

WORDS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "beam_width": "beam_width",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop": "stop",
    "logprobs": "return_log_probs",
    "top_logprobs": "top_log_probs",
}
"""A field of the API -> the word of a Request that stands for it."""
_RUNTIMES = {
    RuntimeKind.ENGINE: "TensorRT-LLM engine",
    RuntimeKind.LLMAPI: "TensorRT-LLM, by its LLM API",
    RuntimeKind.VLLM: "vLLM",
    RuntimeKind.TWIN: "the twin, on processors",
}
_LACKING = {(RuntimeKind.VLLM, "beam_width"): "vLLM behind Triton has no beam search"}
for _kind in (RuntimeKind.ENGINE, RuntimeKind.LLMAPI):
    _LACKING[_kind, "min_p"] = "no model of TensorRT-LLM has an input for it; the twin and vLLM do"
    _LACKING[_kind, "top_logprobs"] = (
        "TensorRT-LLM tells the probability of the picked token alone; the twin and vLLM tell others"
    )


class Memory(Struct, frozen=True, kw_only=True):
    """Bytes; None where nobody here can see it."""

    host: int | None = None
    gpu: int | None = None


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
        cards = [await self._card(name, offer, sight) for name, offer in self.offers.all().items()]
        told = {name: (held.state, held.why) for name, held in states.items()}
        cards = [msgspec.structs.replace(card, state=state, why=why) for card in cards for state, why in [told[card.name]]]
        machine = Machine(memory=sight.memory, held=_memory(sight.held.whole), gpus=sight.gpus, triton=await self._version())
        return msgspec.json.encode(_Document(machine=machine, models=tuple(cards)))

    async def _version(self) -> str:
        with suppress(ForgeError):
            return await self.triton()
        return ""

    async def _card(self, name: str, offer: Offer, sight: Sight) -> Card:
        target, model = offer.target, offer.target.model
        built = limits(target.repository, model)
        try:
            known = await self.known(offer)
        except Fault:  # it is not ready: nobody knows what it takes
            known = ModelMetadata(model.front, {}, {})
        parts = [sight.held.models[folder] for folder in model.roles.values() if folder in sight.held.models]
        return Card(
            name=name,
            runtime=_RUNTIMES[model.runtime],
            version=known.vllm or version(target.repository, model),
            state="",
            why="",
            published=offer.published,
            key=offer.key,
            disk=self.offers.size(offer),
            memory=Memory(host=total(part[0] for part in parts), gpu=total(part[1] for part in parts)),
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
        return _LACKING.get((runtime, field), "this model has no input for it")
    sums = field == "logprobs" and runtime is RuntimeKind.LLMAPI
    return "models of llmapi tell the sum over an answer, and not of its tokens" if sums else ""


def _memory(pair: tuple[int | None, int | None]) -> Memory:
    return Memory(host=pair[0], gpu=pair[1])
