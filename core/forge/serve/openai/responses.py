"""The API's documents, as OpenAI's clients read them. Pure."""

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Struct, UnsetType

from forge.client.answer import Piece
from forge.client.types import Alternative
from forge.serve.openai.calls import Call, Said
from forge.serve.openai.stream import Counts


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Top(Struct):
    token: str
    logprob: float
    bytes: list[int]


class _Token(_Top):
    top_logprobs: list[_Top]


class _ChatLogprobs(Struct):
    content: list[_Token]
    refusal: None = None


class _TextLogprobs(Struct):
    tokens: list[str]
    token_logprobs: list[float]
    text_offset: list[int]
    top_logprobs: list[dict[str, float]] | None = None


class _Function(Struct):
    arguments: str
    name: str


class _Call(Struct):
    function: _Function
    id: str
    index: int | UnsetType = UNSET
    type: str = "function"


class _Message(Struct):
    content: str | UnsetType | None = UNSET
    role: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET
    tool_calls: list[_Call] | UnsetType = UNSET


class _Choice(Struct):
    index: int
    finish_reason: str | None
    message: _Message | UnsetType = UNSET
    delta: _Message | UnsetType = UNSET
    text: str | UnsetType = UNSET
    logprobs: _ChatLogprobs | _TextLogprobs | None = None


class _Document(Struct):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[_Choice]
    usage: _Usage | UnsetType | None = UNSET


class _Model(Struct):
    id: str
    created: int
    object: str = "model"
    owned_by: str = "triton-forge"


class _Models(Struct):
    data: list[_Model]
    object: str = "list"


class Told(Struct, frozen=True):
    """What is told of choice ``index``: its text in pieces; ``finish`` with the last of them.

    ``said`` is what is told of an answer that may call tools, in place of its text: that may wait, or be a call."""

    index: int
    pieces: tuple[Piece, ...] = ()
    finish: str | None = None
    offset: int = 0
    """Characters of the choice that were told before."""
    counts: Counts | None = None
    """Of this choice so far, where each event is to have them."""
    said: Said | None = None

    @property
    def content(self) -> str:
        """What of it is for a person."""
        return self.text if self.said is None else self.said.content

    @property
    def speaks(self) -> bool:
        """Whether there is anything to tell, but why it ended."""
        return bool(self.pieces) if self.said is None else bool(self.said)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class Head(Struct, frozen=True):
    """What all documents of one answer share. ``chat`` tells the two kinds of completions apart."""

    id: str
    created: int
    model: str
    fingerprint: str
    chat: bool
    log_probs: bool
    usage: bool
    """Every document of the stream has a place for the counts."""

    def whole(self, told: Sequence[Told], counts: Counts) -> bytes:
        """The one document of an answer that does not stream."""
        kind = "chat.completion" if self.chat else "text_completion"
        choices = [self._choice(each, _whole(each)) for each in told]
        return msgspec.json.encode(self._document(kind, choices, _usage(counts)))

    def opening(self, told: Told) -> bytes:
        """The first event of a chat's choice, before what is ``told`` first: who speaks."""
        choice = _Choice(told.index, None, delta=_Message("", "assistant", None))
        return self._event([choice], told.counts and Counts(told.counts.prompt, 0))

    def piece(self, told: Told) -> bytes:
        """An event that goes on with a choice, or ends it; nothing where all that came is held back."""
        if not (told.speaks or told.finish or (told.pieces and self.log_probs)):
            return b""
        calls = [_call(each, each.index) for each in told.said.calls] if told.said else []
        delta = _Message(told.content or (UNSET if calls else "")) if told.speaks else _Message()
        delta.tool_calls = calls or UNSET
        return self._event([self._choice(told, delta, streams=True)], told.counts)

    def closing(self, counts: Counts) -> bytes:
        """The event with the counts."""
        return self._event([], counts)

    def _event(self, choices: list[_Choice], counts: Counts | None) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        usage = (None if counts is None else _usage(counts)) if self.usage else UNSET
        return event(msgspec.json.encode(self._document(kind, choices, usage)))

    def _document(self, kind: str, choices: list[_Choice], usage: _Usage | UnsetType | None) -> _Document:
        return _Document(self.id, kind, self.created, self.model, self.fingerprint, choices, usage)

    def _choice(self, told: Told, message: _Message, *, streams: bool = False) -> _Choice:
        likely = (_chat_logprobs(told) if self.chat else _text_logprobs(told)) if self.log_probs else None
        if not self.chat:
            return _Choice(told.index, told.finish, text=told.text, logprobs=likely)
        if streams:
            return _Choice(told.index, told.finish, delta=message, logprobs=likely)
        return _Choice(told.index, told.finish, message=message, logprobs=likely)


def _whole(told: Told) -> _Message:
    calls = [_call(each) for each in told.said.calls] if told.said else []
    return _Message(told.content or (None if calls else ""), "assistant", None, calls or UNSET)


def _call(call: Call, index: int | UnsetType = UNSET) -> _Call:
    return _Call(_Function(call.arguments, call.name), call.id, index)


def event(data: bytes) -> bytes:
    """A server-sent event."""
    return b"data: " + data + b"\n\n"


DONE = event(b"[DONE]")


def models(names: Sequence[tuple[str, int]]) -> bytes:
    """The list of what is offered: (name, seconds since 1970 at which it was published)."""
    return msgspec.json.encode(_Models([_Model(name, created) for name, created in names]))


def model(name: str, created: int) -> bytes:
    """One of them."""
    return msgspec.json.encode(_Model(name, created))


def _usage(counts: Counts) -> _Usage:
    return _Usage(counts.prompt, counts.completion, counts.prompt + counts.completion)


def _tokens(told: Told) -> list[tuple[str, float, Sequence[Alternative]]]:
    """Text, log-probability and alternatives of each token. Of those that one character spans, the last has it and the others
    are empty."""
    found: list[tuple[str, float, Sequence[Alternative]]] = []
    for piece in told.pieces:
        last = len(piece.log_probs) - 1
        for place, log_prob in enumerate(piece.log_probs):
            others = piece.alternatives[place] if place < len(piece.alternatives) else ()
            found.append((piece.text if place == last else "", log_prob, others))
    return found


def _chat_logprobs(told: Told) -> _ChatLogprobs:
    return _ChatLogprobs(
        [
            _Token(
                text,
                log_prob,
                list(text.encode()),
                [_Top(each.text, each.log_prob, list(each.text.encode())) for each in others],
            )
            for text, log_prob, others in _tokens(told)
        ]
    )


def _text_logprobs(told: Told) -> _TextLogprobs:
    tokens, offsets, place = _tokens(told), list[int](), told.offset
    for text, _, _ in tokens:
        offsets.append(place)
        place += len(text)
    # Two tokens can have one text: the likelier one stands for both.
    tops = [{each.text: each.log_prob for each in reversed(others)} for _, _, others in tokens]
    return _TextLogprobs(
        [text for text, _, _ in tokens], [log_prob for _, log_prob, _ in tokens], offsets, tops if any(tops) else None
    )
