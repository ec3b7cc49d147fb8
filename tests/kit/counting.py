"""A decoder in miniature that counts, fails, and remembers its company."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from forge.twin.arrays import Floats, Ints
from forge.twin.decoder import CHUNK, Memory

VOCABULARY = 50


BROKEN = 13


UNREADABLE = 14


class Tape:
    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.length = len(tokens)

    def fork(self) -> "Tape":
        return Tape(list(self.tokens))


@dataclass
class Counting:
    """Says the number after the last one; a sequence that holds 13 fails when it is stepped. Keeps what each call did."""

    vocabulary: int = VOCABULARY
    says: str = "counting"
    positions: int = 1000
    piece: int | None = CHUNK
    begins: int | None = None
    log: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    def start(self) -> Memory:
        return Tape([])

    def prompt(self, memory: Memory, tokens: Ints, *, every: bool = False) -> Floats:
        assert isinstance(memory, Tape)
        self.log.append(("prompt", len(tokens)))
        memory.tokens += tokens.tolist()
        return self._next(tokens if every else tokens[-1:])

    def prompts(self, memories: Sequence[Memory], pieces: Sequence[Ints], every: Sequence[bool]) -> list[Floats]:
        if any(UNREADABLE in piece for piece in pieces):
            raise MemoryError("no room to read this one")
        self.log.append(("prompts", len(pieces)))
        each = zip(memories, pieces, every, strict=True)
        return [self.prompt(memory, piece, every=whole) for memory, piece, whole in each]

    def step(self, memories: Sequence[Memory], tokens: Sequence[int]) -> Floats:
        self.log.append(("step", len(memories)))
        for memory in memories:
            assert isinstance(memory, Tape)
            if BROKEN in memory.tokens:
                raise MemoryError("no room for this one")
        for memory, token in zip(memories, tokens, strict=True):
            assert isinstance(memory, Tape)
            memory.tokens.append(token)
        return self._next(np.array(tokens))

    @staticmethod
    def _next(tokens: Ints) -> Floats:
        return np.eye(VOCABULARY, dtype=np.float32)[(tokens + 1) % VOCABULARY]
