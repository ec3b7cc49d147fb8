"""In-flight batching: one loop that decodes all active sequences together, a token each per turn.

Sequences come and go between turns. A turn takes in only so much of the waiting prompts that those who are speaking are
not held up for long.
"""

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .arrays import Floats, Ints
from .asks import Ask
from .beams import BeamSearch
from .decoder import CHUNK, Decoder, Memory
from .voices import Sample, Voice


class Exchange(Protocol):
    """One request and the way back to whoever made it."""

    request_id: str
    asks: tuple[Ask, ...]

    def cancelled(self) -> bool:
        """Whether the client has gone away; may cost a round trip to the server."""
        ...

    def read(self, row: int, logits: Floats) -> None:
        """A piece of a prompt was taken in; its logits [n, vocabulary], if the row asked for them."""
        ...

    def said(self, row: int, sample: int, voice: Voice) -> None:
        """A voice has said something more, or is done; sends what is due."""
        ...

    def fail(self, what: str) -> None:
        """Ends the whole exchange with an error."""
        ...

    def end(self) -> None:
        """Ends the whole exchange without a further word."""
        ...


@dataclass(slots=True, eq=False)
class _Turn:
    """One row of an exchange: first its prompt is taken in, then its voices speak."""

    exchange: Exchange
    row: int
    ask: Ask
    memory: Memory
    taken: int = 0
    voices: list[tuple[int, Voice]] = field(default_factory=list[tuple[int, Voice]])

    @property
    def places(self) -> int:
        return 1 if self.ask.beams.width > 1 else self.ask.samples

    @property
    def reading(self) -> bool:
        return self.taken < len(self.ask.prompt)


@dataclass(frozen=True, slots=True)
class _Stop:
    request_id: str


class Loop:
    """Decodes for all exchanges that were submitted. ``run`` belongs to one thread; the other methods to any."""

    def __init__(self, decoder: Decoder, places: int, clock: Callable[[], float], check_period: float) -> None:
        self._decoder, self._places = decoder, places
        self._clock, self._check_period, self._checked = clock, check_period, 0.0
        self._inbox: queue.SimpleQueue[Exchange | _Stop | None] = queue.SimpleQueue()
        self._waiting: list[_Turn] = []
        self._active: list[_Turn] = []

    @property
    def waiting(self) -> int:
        """How many rows have no place as yet, and exchanges that nobody looked at."""
        return self._inbox.qsize() + len(self._waiting)

    def submit(self, exchange: Exchange) -> None:
        """Queues an exchange; it is decoded as soon as there is a place."""
        self._inbox.put(exchange)

    def stop(self, request_id: str) -> None:
        """Ends the exchange with this id at the next turn, if it is under way."""
        self._inbox.put(_Stop(request_id))

    def close(self) -> None:
        """Makes ``run`` end what is under way and return."""
        self._inbox.put(None)

    def run(self) -> None:
        """Turns until ``close``; idle while nothing is asked."""
        while self._take_in():
            self._drop_cancelled()
            self._admit()
            self._read_on()
            self._speak()
        for exchange in self._exchanges():
            self._leave(exchange)
            exchange.end()

    def _take_in(self) -> bool:
        """Empties the inbox, waiting for something when there is nothing else to do; False after ``close``."""
        wait = not self._waiting and not self._active
        while True:
            try:
                found = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            wait = False
            if found is None:
                return False
            if isinstance(found, _Stop):
                self._stop_now(found.request_id)
            else:
                self._waiting += [_Turn(found, row, ask, self._decoder.start()) for row, ask in enumerate(found.asks)]

    def _stop_now(self, request_id: str) -> None:
        for exchange in self._exchanges():
            if request_id and exchange.request_id == request_id:
                self._leave(exchange)
                exchange.end()

    def _drop_cancelled(self) -> None:
        now = self._clock()
        if now - self._checked < self._check_period:
            return
        self._checked = now
        for exchange in self._exchanges():
            if exchange.cancelled():
                self._leave(exchange)
                exchange.end()

    def _admit(self) -> None:
        used = sum(turn.places for turn in self._active)
        # A request with more samples than there are places is admitted when it would be alone.
        while self._waiting and (not self._active or used + self._waiting[0].places <= self._places):
            turn = self._waiting.pop(0)
            used += turn.places
            self._active.append(turn)

    def _read_on(self) -> None:
        """Takes in CHUNK tokens of waiting prompts at most: a piece of a long one, or several short ones; or a long one alone,
        where a decoder takes prompts whole.

        Where a prompt is cut depends on itself alone, so that its company cannot change a bit of it.
        """
        room, most, taken = CHUNK, self._decoder.piece, list[tuple[_Turn, Ints]]()
        for turn in [turn for turn in self._active if turn.reading]:
            piece = turn.ask.prompt[turn.taken : None if most is None else turn.taken + most]
            if len(piece) > room and room < CHUNK:
                break
            room -= len(piece)
            taken.append((turn, piece))
        if taken:
            for (turn, piece), logits in zip(taken, self._logits(taken), strict=True):
                self._taken(turn, piece, logits)

    def _logits(self, taken: Sequence[tuple[_Turn, Ints]]) -> list[Floats | Exception]:
        """What the decoder says after each of these pieces, or why it says nothing."""
        if len(taken) > 1 and self._decoder.piece is None:  # nothing would be gained, and half of it be lost with an error
            return [self._logits([one])[0] for one in taken]
        try:
            return [
                *self._decoder.prompts(
                    [turn.memory for turn, _ in taken],
                    [piece for _, piece in taken],
                    [turn.ask.context_logits for turn, _ in taken],
                )
            ]
        except Exception as error:  # noqa: BLE001 (whichever sequence it was: each by itself finds it)
            return [error] if len(taken) == 1 else [self._logits([one])[0] for one in taken]

    def _taken(self, turn: _Turn, piece: Ints, logits: Floats | Exception) -> None:
        """A piece of a prompt was taken in; after the last one its voices hear their first logits."""
        if turn not in self._active:  # its exchange failed by another row
            return
        if isinstance(logits, Exception):
            self._fail(turn.exchange, logits)
            return
        try:
            turn.taken += len(piece)
            if turn.ask.context_logits:
                turn.exchange.read(turn.row, logits)
            if not turn.reading:
                turn.voices = self._voices(turn)
        except Exception as error:  # noqa: BLE001 (one sequence's failure must not end the others')
            self._fail(turn.exchange, error)
            return
        for sample, voice in turn.voices:
            self._hear(turn, sample, voice, logits[-1:])

    def _voices(self, turn: _Turn) -> list[tuple[int, Voice]]:
        ask, vocabulary = turn.ask, self._decoder.vocabulary
        if ask.beams.width > 1:
            return [(0, BeamSearch(ask, turn.memory, vocabulary))]
        memories = [turn.memory, *(turn.memory.fork() for _ in range(1, ask.samples))]
        return [(sample, Sample(ask, memory, sample, vocabulary)) for sample, memory in enumerate(memories)]

    def _speak(self) -> None:
        """One token more for every voice, all in one step of the decoder."""
        speaking = [(turn, sample, voice) for turn in self._active for sample, voice in turn.voices if not voice.done]
        if not speaking:
            return
        heard = self._step([voice for _, _, voice in speaking])
        for (turn, sample, voice), logits in zip(speaking, heard, strict=True):
            if turn in self._active:
                if isinstance(logits, Exception):
                    self._fail(turn.exchange, logits)
                else:
                    self._hear(turn, sample, voice, logits)

    def _step(self, voices: Sequence[Voice]) -> list[Floats | Exception]:
        memories = [list(voice.memories()) for voice in voices]
        try:
            logits = self._decoder.step(
                [memory for part in memories for memory in part], [token for voice in voices for token in voice.tokens()]
            )
        except Exception as error:  # noqa: BLE001 (whichever sequence it was: each by itself finds it)
            return [error] if len(voices) == 1 else [self._step([voice])[0] for voice in voices]
        return list(np.split(logits, np.cumsum([len(part) for part in memories])[:-1]))

    def _hear(self, turn: _Turn, sample: int, voice: Voice, logits: Floats) -> None:
        if turn not in self._active:
            return
        try:
            voice.hear(logits)
            turn.exchange.said(turn.row, sample, voice)
        except Exception as error:  # noqa: BLE001 (one sequence's failure must not end the others')
            self._fail(turn.exchange, error)
            return
        if all(voice.done for _, voice in turn.voices):
            self._active.remove(turn)

    def _fail(self, exchange: Exchange, error: Exception) -> None:
        self._leave(exchange)
        exchange.fail(f"{type(error).__name__}: {error}")

    def _leave(self, exchange: Exchange) -> None:
        self._active = [turn for turn in self._active if turn.exchange is not exchange]
        self._waiting = [turn for turn in self._waiting if turn.exchange is not exchange]

    def _exchanges(self) -> list[Exchange]:
        """Every exchange under way, once."""
        return list({id(turn.exchange): turn.exchange for turn in [*self._active, *self._waiting]}.values())
