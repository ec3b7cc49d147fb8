"""Answers OpenAI's API: takes an ask, puts it to the served model, tells what comes."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from forge.client.grpc_aio import AsyncClient
from forge.client.tensors import GUIDE_TYPE, LOGIT_BIAS, inputs_of, offers, sightless
from forge.client.types import ModelMetadata, Request
from forge.client.vllm import IMAGE, SAMPLING
from forge.errors import InferenceError, Trouble
from forge.schema.values import LimitsTable
from forge.serve.openai import bounds, notes, requests as asks, responses, tools
from forge.serve.openai.api_errors import Fault, busy, coming, translated
from forge.serve.openai.calls import Said
from forge.serve.openai.loaded import Loaded
from forge.serve.openai.metrics import Meter, Outcome
from forge.serve.openai.models import Models, Offer
from forge.serve.openai.requests import Ask, ChatAsk, TextAsk
from forge.serve.openai.responses import Head, Told
from forge.serve.openai.rounds import DEADLINE, Rounds
from forge.serve.openai.stream import Counts, Telling
from forge.serve.openai.tools import Calling

_UNREAD = 64
"""Pieces that wait for a client to read them; the model's answer is read on when there is room."""

_UNGUIDED = (
    "this model cannot be held to a call: it has no input for that (models of the runtime vllm do, and engines from 0.19 on); "
    "auto leaves it to the model"
)
_SPELLED = '{"skip_special_tokens": false}'
"""Where the mark of calls is a special token, which would be left out of the text."""
Put = Callable[[Told | Fault], Awaitable[None]]


class Answered(Struct, frozen=True):
    """One document; or, in its place, the events of a stream. Closing those ends the requests behind them."""

    document: bytes = b""
    events: AsyncGenerator[bytes] | None = None


class _Turn(Struct, frozen=True):
    """One request to Triton, and who tells of its sequences: the choices from ``first`` on."""

    first: int
    request: Request
    tellings: tuple[Telling, ...]


class Clocks(Struct, frozen=True):
    """Seconds since 1970, seconds for measuring, and new ids."""

    now: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic
    fresh: Callable[[], str] = lambda: uuid.uuid4().hex


class Service:
    """``client`` speaks to the server behind ``offers``, whose state file is ``state``, where forge has started it."""

    def __init__(self, client: AsyncClient, offers: Models, rounds: Rounds, clocks: Clocks, state: Path | None = None) -> None:
        self._state = state
        self._meter = Meter(clocks.steady)
        self._client = client
        self._offers = offers
        self._rounds = rounds
        self._clocks = clocks
        self._loaded = Loaded(client, clocks.steady)
        self._under_way = Counter[str]()
        """Answers by model."""

    @property
    def largest(self) -> int:
        """Bytes of the largest body that any model takes."""
        return max((offer.limits.max_body_bytes for offer in self._offers.all().values()), default=LimitsTable().max_body_bytes)

    async def models(self) -> bytes:
        """Those that are offered, ready and alive."""
        ready, states = set(await self._ready()), await self._rounds.states()
        alive = {name for name, held in states.items() if held.state != "dead"}
        offered = {name: each for name, each in self._offers.all().items() if each.target.model.front in ready}
        return responses.models([(name, each.published) for name, each in offered.items() if name in alive])

    async def model(self, name: str) -> bytes:
        """One of them; Fault where there is no such model, or it is dead."""
        offer = self._offers.find(name)
        if offer.target.model.front not in await self._ready():
            raise self._fault(InferenceError("it is not ready", trouble=Trouble.UNKNOWN), name)
        await self._rounds.require(name)
        return responses.model(name, offer.published)

    async def health(self) -> bytes:
        """How each model is; Fault where one is dead, or Triton is away."""
        try:
            async with asyncio.timeout(DEADLINE):
                await self._ready()
        except TimeoutError as error:
            said = f"Triton did not answer within {DEADLINE:g} s; `forge stop` and `forge serve` start all of it anew"
            raise Fault(503, said, code="server_unavailable") from error
        return await self._rounds.document()

    def metrics(self) -> bytes:
        """What was counted so far, as Prometheus reads it."""
        return self._meter.text()

    def refused(self, status: int, code: str | None) -> None:
        """Count a request that gets an error."""
        self._meter.refused(status, code)

    async def chat(self, body: bytes) -> Answered:
        """POST /v1/chat/completions."""
        asked = self._clocks.steady()
        ask = asks.read(body, ChatAsk)
        offer = self._admitted(ask, body)
        if ask.images and not offers("images", known := await self.known(offer)):
            said = f"{ask.model} takes no images; {sightless(known)}"
            raise Fault(400, said, param="messages", code="unsupported_value")
        calling = await self._calling(ask, offer)
        shown = ask.tooling.shown if ask.tooling else ()
        prompts = (await self._offers.templated(offer, ask.conversation, shown),)
        bounds.check_prompts(ask, prompts, "messages", offer.limits)
        return await self._answered(ask, offer, prompts, asked, calling)

    async def complete(self, body: bytes) -> Answered:
        """POST /v1/completions."""
        asked = self._clocks.steady()
        ask = asks.read(body, TextAsk)
        offer = self._admitted(ask, body)
        bounds.check_prompts(ask, ask.prompts, "prompt", offer.limits)
        return await self._answered(ask, offer, ask.prompts, asked)

    async def _calling(self, ask: ChatAsk, offer: Offer) -> Calling | None:
        """How calls of tools are read out of the answer; None where there are none to be made. Fault where the model cannot."""
        tooling = ask.tooling
        if tooling is None and not ask.recalls:
            return None
        template = await self._offers.template(offer)
        tools.require_known(template, tools=tooling is not None)
        if tooling is None:
            return None
        if tooling.guide and not offers(GUIDE_TYPE, await self.known(offer)):
            raise Fault(400, f"tool_choice: {_UNGUIDED}", param="tool_choice", code="unsupported_value")
        return tooling.calling(template, self._clocks.fresh)

    def _admitted(self, ask: Ask, body: bytes) -> Offer:
        """Who is asked; Fault for an unknown model, and for more than it takes."""
        offer = self._offers.find(ask.model)
        bounds.check(ask, body, offer.limits)
        return offer

    def _fault(self, error: InferenceError, model: str) -> Fault:
        return coming(model) if error.trouble is Trouble.UNKNOWN and notes.coming(self._state) else translated(error, model)

    async def _ready(self) -> tuple[str, ...]:
        try:
            return await self._client.models()
        except InferenceError as error:
            raise translated(error) from error

    async def _answered(
        self, ask: Ask, offer: Offer, prompts: Sequence[str], asked: float, calling: Calling | None = None
    ) -> Answered:
        known = await self.known(offer)
        turns = self._turns(ask, offer, prompts, known, calling)
        tellings = [telling for turn in turns for telling in turn.tellings]
        copies = ask.n or 1

        def so_far(index: int) -> Counts:
            prompt = tellings[index].prompt(prompts[index // copies], lambda text: self._offers.count(offer, text, prompt=True))
            return Counts(prompt, tellings[index].completion)

        told = self._told(offer, turns, asked, so_far if ask.wants_usage_throughout else None)
        number, chat = self._clocks.fresh(), isinstance(ask, ChatAsk)
        head = Head(
            id=f"chatcmpl-{number}" if chat else f"cmpl-{number}",
            created=int(self._clocks.now()),
            model=ask.model,
            fingerprint=f"fp_{offer.key.rpartition(':')[2][:12]}",
            chat=chat,
            log_probs=ask.log_probs,
            usage=ask.wants_usage,
        )

        def summed() -> Counts:
            each = [so_far(index) for index in range(len(tellings))]
            return Counts(sum(one.prompt for one in each[::copies]), sum(one.completion for one in each))

        def counts() -> Awaitable[Counts]:
            return _aside(summed, tellings)

        if not ask.stream:
            whole = await _gathered(told, len(tellings))
            return Answered(head.whole(whole, await counts()))
        # What is wrong with the request is said by now, while there is still a status to say it with.
        return Answered(events=_events(head, await anext(told), told, counts, len(tellings)))

    def _turns(
        self, ask: Ask, offer: Offer, prompts: Sequence[str], known: ModelMetadata, calling: Calling | None
    ) -> list[_Turn]:
        """The requests to Triton: one for each answer; one for all beams of a prompt, of which the best are the answers."""
        copies, turns = ask.n or 1, list[_Turn]()
        for prompt in prompts:
            usual = replace(offer.usual, prompt=prompt)
            width = ask.beam_width or usual.beam_width or 1
            bounds.check_beams(ask, width)
            for copy in range(1 if width > 1 else copies):
                request = _fitting(ask.applied(usual, copy), known)
                if calling and calling.spelled and SAMPLING in known.inputs:
                    request = replace(request, inputs={SAMPLING: _SPELLED})
                tellings = [self._telling(offer, request, calling) for _ in range(copies if width > 1 else 1)]
                turns.append(_Turn(len(turns) if width == 1 else len(turns) * copies, request, tuple(tellings)))
        return turns

    def _telling(self, offer: Offer, request: Request, calling: Calling | None) -> Telling:
        def count(text: str) -> int:
            return self._offers.count(offer, text, prompt=False)

        return Telling(request, count, partial(self._offers.spans, offer), calling.reader() if calling else None)

    async def known(self, offer: Offer) -> ModelMetadata:
        """What the model takes; Fault where it is not ready."""
        try:
            return await self._loaded.known(offer)
        except InferenceError as error:
            raise self._fault(error, offer.target.model.name) from error

    async def _told(
        self, offer: Offer, turns: Sequence[_Turn], asked: float, so_far: Callable[[int], Counts] | None
    ) -> AsyncGenerator[Told]:
        """What all of them say, as it comes, with the counts ``so_far``; closing it ends them at the server. The client's
        request was whole when it was ``asked``, by the clock for measuring."""

        async def put(told: Told | Fault) -> None:
            if so_far and isinstance(told, Told):
                count = partial(so_far, told.index)
                told = replace(told, counts=await _aside(count, tellings[told.index : told.index + 1]))
            await queue.put(told)

        tellings = [telling for turn in turns for telling in turn.tellings]
        name, most = offer.target.model.name, offer.limits.max_requests
        if self._under_way[name] + len(tellings) > most:
            raise busy(name, most)
        self._under_way[name] += len(tellings)
        queue: asyncio.Queue[Told | Fault] = asyncio.Queue(_UNREAD)
        tasks = [asyncio.create_task(self._tell(name, turn, asked, put)) for turn in turns]
        open_ends = len(tellings)
        try:
            while open_ends:
                told = await queue.get()
                if isinstance(told, Fault):
                    raise told
                open_ends -= told.finish is not None
                yield told
        finally:
            self._under_way[name] -= len(tellings)
            left = [task for task in tasks if not task.done()]
            for task in left:
                task.cancel()
            if left:
                await asyncio.gather(*left, return_exceptions=True)

    async def _tell(self, name: str, turn: _Turn, asked: float, put: Put) -> None:
        offsets = [0] * len(turn.tellings)
        course, outcome = self._meter.course(name, asked), Outcome.LEFT
        try:
            async with aclosing(self._client.generate(turn.request)) as chunks:
                async for chunk in chunks:
                    self._rounds.heard(name)
                    if (turn.request.beam_width or 1) > 1:  # the model counts the tokens of all beams together
                        chunk = replace(chunk, output_tokens=None)  # noqa: PLW2901
                    if chunk.index < len(offsets) and (pieces := turn.tellings[chunk.index].hear(chunk)):
                        course.piece()
                        text = "".join(piece.text for piece in pieces)
                        said, offset = turn.tellings[chunk.index].read(text), offsets[chunk.index]
                        await put(Told(turn.first + chunk.index, pieces, offset=offset, said=said))
                        offsets[chunk.index] += len(text)
            outcome = Outcome.OK
        except InferenceError as error:
            outcome = Outcome.FAILED
            await put(self._fault(error, turn.request.model))
            return
        finally:
            course.end(outcome, turn.tellings[0].asked, sum(telling.known for telling in turn.tellings))
        for place, telling in enumerate(turn.tellings):
            rest = telling.rest()  # before why it ended: that may be a call in what is left
            await put(Told(turn.first + place, (), telling.finish, offsets[place], said=rest))


def _fitting(request: Request, known: ModelMetadata) -> Request:
    """As the model can be asked it; Fault for what it cannot.

    Streamed wherever it can, so that tokens are counted and leaving is noticed. Beams overtake each other and come whole.
    """
    request = replace(request, stream=known.decoupled and (request.beam_width or 1) == 1)
    try:
        inputs_of(request, known)
    except InferenceError as error:
        blamed = _blamed(request, known)
        said = f"{error.what} ({error.hint})" if error.hint else error.what
        raise Fault(400, said, param=blamed, code="unsupported_value" if blamed else None) from error
    return request


def _blamed(request: Request, known: ModelMetadata) -> str | None:
    """The API's field that the model has no input for."""
    if request.guide and not offers(GUIDE_TYPE, known):
        return "response_format"
    if request.logit_bias and (not offers(LOGIT_BIAS, known) or IMAGE in known.inputs):
        return "logit_bias"
    return "top_logprobs" if request.top_log_probs and not offers("top_log_probs", known) else None


async def _aside(count: Callable[[], Counts], tellings: Sequence[Telling]) -> Counts:
    """What ``count`` gives; in a thread where texts have to be tokenized for it, so that others are served meanwhile."""
    return count() if all(each.told for each in tellings) else await asyncio.to_thread(count)


async def _gathered(told: AsyncGenerator[Told], count: int) -> list[Told]:
    """The choices, each whole."""
    whole = [Told(index) for index in range(count)]
    async with aclosing(told) as parts:
        async for part in parts:
            held = whole[part.index]
            said = part.said and (held.said or Said()).joined(part.said)
            whole[part.index] = replace(held, pieces=held.pieces + part.pieces, finish=part.finish, said=said or held.said)
    return whole


async def _events(
    head: Head, part: Told, told: AsyncGenerator[Told], counts: Callable[[], Awaitable[Counts]], choices: int
) -> AsyncGenerator[bytes]:
    """Server-sent events, of ``part`` first: each choice opens when it first says something; the last one's end goes with all
    that comes after it."""
    begun: set[int] = set()

    def shown(part: Told) -> bytes:
        opening = head.opening(part) if head.chat and part.index not in begun else b""
        begun.add(part.index)
        text = head.piece(replace(part, finish=None) if part.finish else part)
        return opening + text + (head.piece(replace(part, pieces=(), said=None)) if part.finish else b"")

    async with aclosing(told):
        try:
            while choices := choices - (part.finish is not None):
                yield shown(part)
                part = await anext(told)
        except Fault as fault:
            yield responses.event(fault.body)
            return
    yield shown(part) + (head.closing(await counts()) if head.usage else b"") + responses.DONE
