"""What a driver is given and what it brings back: the protocol of tools that put load on models."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from forge.client.types import Request


class Load(Struct, frozen=True):
    """How requests are sent: so many under way at any time, or so many arriving in a second. Exactly one is set."""

    concurrency: int | None = None
    rate: float | None = None


class Ask(Struct, frozen=True):
    """One request and the length of its prompt in tokens."""

    request: Request
    input_tokens: int = 0


class Drive(Struct, frozen=True):
    """One repeat on one model: ``warm`` first, uncounted; then ``asks``, once, or again and again for ``duration`` seconds."""

    address: str
    """Of gRPC, as host:port."""
    http: str
    """Of HTTP, as host:port."""
    load: Load
    asks: Sequence[Ask]
    warm: Sequence[Ask] = ()
    duration: float | None = None
    seed: int = 0
    """Of the arrivals of an open loop."""
    patience: float | None = None
    """Seconds after which a request is given up, as an error."""
    tokenizer: Path | None = None
    """The model's own, a folder."""


class Answer(Struct, frozen=True):
    """What came for one ask. Moments are seconds since the load began."""

    ask: Ask
    due: float
    sent: float
    end: float
    marks: tuple[float, ...] = ()
    """When each chunk of the first sequence came that had a text or tokens."""
    text: str = ""
    """Of the first sequence."""
    tokens: int = 0
    """How many the server says the first sequence has; 0 from a model that gives text and no counts."""
    input_tokens: int = 0
    """How many the server says the prompt has; 0 where it does not."""
    error: str = ""
    spoken: int = 0
    """How many the model's tokenizer makes of the text, by a tool that counts them and does not give the text."""


Watch = Callable[[], AbstractContextManager[None]]
"""Opened when the warm-up is over and closed when the last answer has come: what looks at the server meanwhile."""


class Driver(Protocol):
    """Puts load on models and brings back every answer, the failed too."""

    @property
    def name(self) -> str:
        """The tool and its version, as results name it."""
        ...

    def drive(self, drive: Drive, watch: Watch) -> tuple[Answer, ...]:
        """Its answers, in the order in which they were due."""
        ...
