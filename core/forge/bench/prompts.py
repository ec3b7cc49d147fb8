"""What is asked: prompts of an exact length in tokens, or a data set; the same seed gives the same prompts."""

import random
from collections.abc import Iterator, Sequence
from typing import Annotated, Protocol

import msgspec
from blake3 import blake3
from msgspec import Meta, Struct

from forge.errors import BenchError

_TRIES = 50


class Tokens(Protocol):
    """A model's tokenizer."""

    def count(self, text: str) -> int:
        """How many tokens the model's preprocessing makes of a prompt: special tokens that it adds are counted."""
        ...

    def spoken(self, text: str) -> int:
        """How many tokens an answer has: nothing is added."""
        ...

    def words(self) -> tuple[str, ...]:
        """Words that are one token each when a space stands before them, in a fixed order."""
        ...


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: str
    content: str


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a data set: a prompt as it is sent, or messages for the chat template; ``max_tokens`` of its answer."""

    prompt: str = ""
    messages: tuple[Message, ...] = ()
    max_tokens: Annotated[int, Meta(ge=1)] | None = None


class Prompt(Struct, frozen=True):
    """A text to send, its length, and the most tokens of its answer (None: as the benchmark says)."""

    text: str
    tokens: int = 0
    max_tokens: int | None = None


def dataset(text: str, where: str) -> tuple[Entry, ...]:
    """JSONL, one entry a line, empty lines aside; BenchError names the line that is wrong."""
    found = tuple(_entries(text, where))
    if not found:
        raise BenchError("the data set is empty", where=where)
    return found


def _entries(text: str, where: str) -> Iterator[Entry]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = msgspec.json.decode(line, type=Entry)
        except msgspec.DecodeError as error:
            raise BenchError(
                str(error), where=f"{where}:{number}", hint='a line is like {"prompt": "...", "max_tokens": 64}'
            ) from error
        if bool(entry.prompt) == bool(entry.messages):
            raise BenchError('either "prompt" or "messages" must stand here', where=f"{where}:{number}")
        yield entry


def made(tokens: Tokens, length: int, count: int, seed: int) -> tuple[Prompt, ...]:
    """``count`` different prompts of exactly ``length`` tokens each.

    They are common words at random: texts without sense, which no cache of an earlier prompt can shorten.
    BenchError where the tokenizer allows no such length.
    """
    words = tokens.words()
    if len(words) < 2:
        raise BenchError("no words of one token were found in the tokenizer", hint="bring prompts of your own: --dataset FILE")
    chance = random.Random(seed)  # noqa: S311
    return tuple(Prompt(_made(tokens, words, length, chance), length) for _ in range(count))


def _made(tokens: Tokens, words: Sequence[str], length: int, chance: random.Random) -> str:
    """Words are added or taken away until the length is right: some join with a neighbour, and special tokens count too."""
    chosen = chance.choices(words, k=length)
    for _ in range(_TRIES):
        text = " ".join(chosen)
        off = tokens.count(text) - length
        if off == 0 and text:
            return text
        kept = len(chosen) - off
        if off < 0:
            chosen += chance.choices(words, k=-off)
        else:  # a first word without its space may be more than one token: where it is the only one, another is tried
            chosen = chosen[:kept] if kept > 0 else chance.choices(words, k=1)
    raise BenchError(
        f"the tokenizer gives no prompt of {length} tokens",
        hint="its special tokens alone may be more: ask for longer prompts, or bring your own: --dataset FILE",
    )


def digest(prompts: Sequence[Prompt]) -> str:
    """Of what is asked, in its order: equal digests are equal work."""
    return blake3(msgspec.json.encode(prompts)).hexdigest()
