"""Stop texts: an answer ends before the first of them, wherever its tokens part; what may be the beginning of one waits. Pure.

Models know stop words as tokens, and end an answer only where it has these very tokens; TensorRT-LLM leaves them in the text.
"""

from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from forge.client.types import Chunk


def spellings(texts: Sequence[str]) -> tuple[str, ...]:
    """``texts`` as stop words for a model: with a blank before each as well, which most tokenizers write into the token."""
    return tuple(dict.fromkeys(each for text in texts for each in ((text,) if text[:1].isspace() else (text, f" {text}"))))


def barred(texts: Sequence[str]) -> tuple[str, ...]:
    """``texts`` as bad words for a model: each with and without a blank before it."""
    bare = [(text, text.removeprefix(" ")) for text in texts]
    return tuple(dict.fromkeys(each for text, word in bare for each in (text, word, f" {word}") if word or each == text))


class Stops:
    """Hears one request's chunks and gives what may be shown of them. ``count``: how many sequences were asked for.

    Chunks that state their sequence anew (streaming beams) are cut, and nothing of them waits.
    """

    def __init__(self, texts: Sequence[str], count: int = 1) -> None:
        self._texts = tuple(filter(None, texts))
        self._count = count
        self._held: dict[int, list[Chunk]] = {}
        self._reached: set[int] = set()

    @property
    def reached(self) -> bool:
        """Every sequence has come to a stop text: nothing more is wanted of the server, and the last chunk was final."""
        return len(self._reached) >= self._count

    def hear(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """What can be shown after ``chunks``."""
        for chunk in chunks:
            if self._texts:
                yield from self._shown(chunk)
            else:
                yield chunk
            if self.reached:
                return

    def _shown(self, chunk: Chunk) -> Iterator[Chunk]:
        if chunk.final:  # it is the last of all: what other sequences hold goes before it
            yield from (each for index in sorted(self._held) if index != chunk.index for each in self._held.pop(index))
        if chunk.index in self._reached:
            if chunk.final or chunk.output_tokens is not None:
                yield replace(chunk, text="", tokens=(), log_probs=(), cum_log_prob=None)
        elif chunk.whole:
            place = self._place(chunk.text)
            yield chunk if place is None else replace(chunk, text=chunk.text[:place], stopped=True)
        else:
            yield from self._released(chunk)

    def _released(self, chunk: Chunk) -> Iterator[Chunk]:
        held = self._held.setdefault(chunk.index, [])
        held.append(chunk)
        text = "".join(each.text for each in held)
        if (place := self._place(text)) is not None:
            yield from self._cut(chunk, place)
            return
        room = len(text) if chunk.final else len(text) - max((begun(text, stop) for stop in self._texts), default=0)
        while held and len(held[0].text) <= room:
            room -= len(held[0].text)
            yield held.pop(0)

    def _cut(self, last: Chunk, place: int) -> Iterator[Chunk]:
        """What is held before ``place``; the chunk across that border, or an empty one, says that a stop text ended it."""
        held = self._held.pop(last.index)
        while len(held[0].text) < place:
            place -= len(held[0].text)
            yield held.pop(0)
        self._reached.add(last.index)
        ends = replace(
            held[0] if place else replace(last, text="", tokens=(), log_probs=(), cum_log_prob=None),
            final=last.final or self.reached,
            input_tokens=next((each.input_tokens for each in held if each.input_tokens is not None), None),
            output_tokens=total(each.output_tokens for each in held),
            stopped=True,
            seconds=last.seconds,
        )
        yield replace(ends, text=ends.text[:place])

    def _place(self, text: str) -> int | None:
        return min((place for stop in self._texts if (place := text.find(stop)) >= 0), default=None)


def begun(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


def total(counts: Iterable[int | None]) -> int | None:
    """The sum of those that are known; None where none is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
