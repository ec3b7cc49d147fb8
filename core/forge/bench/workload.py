"""From a setting to the requests that are sent, and from answers to records. Pure; the same seed gives the same requests."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle, islice
from typing import Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from forge.bench import figures, prompts
from forge.bench.driver import Answer, Ask
from forge.bench.options import REQUESTS, SAMPLING, BenchOptions, Setting
from forge.bench.prompts import Entry, Prompt, Tokens
from forge.bench.results import Counted, Record, Value
from forge.client.sampling import meant, over, seeded
from forge.client.types import Request
from forge.client.vllm import SAMPLING as SAMPLING_PARAMETERS
from forge.errors import BenchError

_SHORTEST = frozenset({"min_tokens", "min_length", "sampling_param_min_tokens", SAMPLING_PARAMETERS})
"""Inputs by which a model can be told how long an answer is at least, by version."""
_POOL = 512
"""Different prompts of a repeat that is bounded by time."""
_APART = 1_000_003
"""Between the seeds of two repeats, and of a repeat and its warm-up: no two share their prompts."""
_DEVIATION = 0.1

Render = Callable[[Sequence[tuple[str, str]]], str]


class Tokenizer(Tokens, Protocol):
    """A model's tokenizer, if it is one that can be used here."""

    @property
    def missing(self) -> str:
        """Why it cannot be used; empty where it can."""
        ...

    @property
    def digest(self) -> str:
        """Tells tokenizers apart; empty where nobody knows."""
        ...


class Offer(Struct, frozen=True):
    """What requests to one served model are made from: its recipe's request, its inputs' names, tokenizer, chat template."""

    request: Request
    inputs: frozenset[str]
    tokens: Tokenizer
    render: Render

    @property
    def endless(self) -> bool:
        """Whether the model can be told not to end before a length."""
        return bool(self.inputs & _SHORTEST)


class Workload(Struct, frozen=True):
    """All that one model is asked. ``entries`` are the data set's; without any, prompts are made."""

    offer: Offer
    options: BenchOptions
    entries: tuple[Entry, ...] = ()
    count: int = REQUESTS
    """Requests of a repeat that is bounded by their number."""

    def whole(self, setting: Setting) -> bool:
        """Whether answers are kept from ending early; BenchError where that is asked for and cannot be had."""
        if self.options.ignore_end and not self.offer.endless:
            raise BenchError("the model cannot be told how long an answer is at least", where=self.offer.request.model)
        asked = self.options.ignore_end
        return asked if asked is not None else setting.output_tokens is not None and self.offer.endless

    def prompts(self, setting: Setting, repeat: int, *, warm: bool = False) -> tuple[Prompt, ...]:
        """A repeat's prompts. A data set's are the same in every repeat: a server that caches prompts may have them."""
        count = self.warmup(setting) if warm else self._many(setting)
        if not self.entries:
            if self.offer.tokens.missing or setting.input_tokens is None:
                missing = f"no prompts can be made: {self.offer.tokens.missing}"
                raise BenchError(missing, hint="bring prompts of your own: --dataset FILE")
            seed = self.options.seed + _APART * (2 * repeat + (1 if warm else 0))
            return prompts.made(self.offer.tokens, setting.input_tokens, count, seed)
        given = [self._given(entry) for entry in self.entries]
        return tuple(islice(cycle(given), count)) if self.options.duration is None or warm else tuple(given)

    def asks(self, setting: Setting, repeat: int, texts: Sequence[Prompt]) -> tuple[Ask, ...]:
        """A request for each of ``texts``, with a sampling seed of its own."""
        chance = random.Random(self.options.seed + repeat)  # noqa: S311
        whole = self.whole(setting)
        return tuple(self._ask(setting, text, chance.randrange(1, 2**31), whole=whole) for text in texts)

    def warmup(self, setting: Setting) -> int:
        under_way = 2 if setting.load.concurrency is None else setting.load.concurrency
        return under_way if self.options.warmup is None else self.options.warmup

    def sampling(self, setting: Setting) -> dict[str, Value]:
        """What every request tells the server; the rest is left to it."""
        request = meant(self._ask(setting, Prompt(""), 0, whole=self.whole(setting)).request)
        stated = {name: getattr(request, name) for name in SAMPLING if name != "min_tokens" or name in setting.sampling}
        return {name: value for name, value in stated.items() if value is not None}

    def _many(self, setting: Setting) -> int:
        if self.options.duration is None:
            return self.count
        expected = 0.0 if setting.load.rate is None else setting.load.rate * self.options.duration * 1.5
        return max(_POOL, int(expected))

    def _given(self, entry: Entry) -> Prompt:
        text = entry.prompt
        if entry.messages:
            text = self.offer.render([(each.role, each.content) for each in entry.messages])
        elif self.options.chat:
            text = self.offer.render([("user", text)])
        return Prompt(text, 0 if self.offer.tokens.missing else self.offer.tokens.count(text), entry.max_tokens)

    def _ask(self, setting: Setting, text: Prompt, seed: int, *, whole: bool) -> Ask:
        plain = self.offer.request
        request = replace(seeded(over(plain, setting.sampling), seed), prompt=text.text, stream=self.options.stream)
        longest = setting.output_tokens or text.max_tokens or plain.max_tokens
        request = replace(request, max_tokens=longest, return_token_counts=True)
        if whole:
            request = replace(request, min_tokens=request.max_tokens, stop=())
        return Ask(request, text.tokens)


class Counter(Struct):
    """Turns answers into records and keeps in mind who said how many tokens they have."""

    tokens: Tokenizer
    limits: Mapping[str, float]
    ways: set[Counted] = field(default_factory=set[Counted])
    asked: int = 0
    spoken: int = 0
    """Tokens of the answers whose length was fixed: as asked for, and as the tokenizer counts their texts."""

    def record(self, answer: Answer) -> Record:
        count = self._count(answer)
        marks = [round(mark, 6) for mark in (answer.marks[:1] + answer.marks[-1:])]
        record = Record(
            due=round(answer.due, 6),
            sent=round(answer.sent, 6),
            first=marks[0] if marks else None,
            last=marks[-1] if marks else None,
            end=round(answer.end, 6),
            input_tokens=answer.input_tokens or answer.ask.input_tokens,
            output_tokens=count,
            error=answer.error,
        )
        return replace(record, good=figures.good(record, self.limits))

    def doubt(self) -> str:
        """A remark where the server seems not to have kept to the length that it was asked for."""
        if not self.asked or abs(self.spoken / self.asked - 1) <= _DEVIATION:
            return ""
        return f"answers of {self.asked} tokens were asked for, and the tokenizer counts {self.spoken} in their texts"

    def _count(self, answer: Answer) -> int:
        request = answer.ask.request
        if answer.tokens:
            self.ways.add("server")
            return answer.tokens
        if answer.error and not (answer.text or answer.spoken):
            return 0
        if request.min_tokens == request.max_tokens and not answer.error:
            self.ways.add("asked")
            if not self.tokens.missing:
                self.asked += request.max_tokens
                self.spoken += answer.spoken or self.tokens.spoken(answer.text)
            return request.max_tokens
        if answer.spoken or not self.tokens.missing:
            self.ways.add("tokenizer")
            return answer.spoken or self.tokens.spoken(answer.text)
        self.ways.add("chunks")
        return len(answer.marks)


def gaps(answers: Iterable[Answer]) -> list[float]:
    """Every time between two chunks of an answer that came whole."""
    return [
        later - earlier
        for answer in answers
        if not answer.error
        for earlier, later in zip(answer.marks, answer.marks[1:], strict=False)
    ]
