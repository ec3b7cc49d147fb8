"""The twin's batching loop without Triton: exchanges that keep what was said, and a run of them from beginning to end."""

import threading
from dataclasses import dataclass, field

import numpy as np

from forge.twin.arrays import Floats
from forge.twin.asks import Ask
from forge.twin.batching import Loop
from forge.twin.decoder import Decoder
from forge.twin.voices import Voice
from patience import PATIENCE


@dataclass(eq=False)
class Heard:
    """An exchange that keeps what was said."""

    asks: tuple[Ask, ...]
    request_id: str = ""
    tokens: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    outcome: str = ""
    over: threading.Event = field(default_factory=threading.Event)
    left: int = -1

    def cancelled(self) -> bool:
        return False

    def read(self, row: int, logits: Floats) -> None:
        self.outcome += f"read {len(logits)};"

    def said(self, row: int, sample: int, voice: Voice) -> None:
        if lines := voice.lines():  # beams have none before they end
            self.tokens[row] = list(lines[0].tokens)
        self.left = (len(self.asks) if self.left < 0 else self.left) - voice.done
        if not self.left:
            self.over.set()

    def fail(self, what: str) -> None:
        self.outcome += what
        self.over.set()

    def end(self) -> None:
        self.outcome += "ended"
        self.over.set()


def heard(*prompts: list[int], count: int = 5) -> Heard:
    return Heard(tuple(Ask(np.array(prompt), count) for prompt in prompts))


def run(decoder: Decoder, *exchanges: Heard, places: int = 8) -> None:
    """All exchanges through one loop, submitted before it begins."""
    loop = Loop(decoder, places, lambda: 0.0, 1.0)
    for exchange in exchanges:
        loop.submit(exchange)
    thread = threading.Thread(target=loop.run)
    thread.start()
    for exchange in exchanges:
        assert exchange.over.wait(PATIENCE)
    loop.close()
    thread.join()
