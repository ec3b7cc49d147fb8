"""Token ids as they come -> text as it grows. Stands beside tensorrt_llm_bls's model.py, which imports it."""

from collections.abc import Sequence

from tokenizers import Tokenizer

BROKEN = "\ufffd"
_UNFINISHED = 4
"""Bytes of a character at most."""


class Detokenizer:
    """One sequence's ids as they come -> its text as it grows; however the ids are cut, the pieces join to the same text: what
    decoding all at once gives, but for a run of bytes that is longer than ``LONGEST`` and breaks off behind.

    The last piece is decoded again together with what is new, so that a space which the tokenizer drops at the start of a text
    is not dropped in the middle. What can still become another character is held back: a text may end in a part of one, which
    tokenizers show as U+FFFD; and SentencePiece's tokens of single bytes (<0xE4>) decode all or nothing, as one run.
    """

    LONGEST = 96
    """Bytes of a run that are waited for; a longer one (a text in letters that the vocabulary has not) is told in parts."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._bytes = _bytes(tokenizer)
        marks = tokenizer.get_added_tokens_decoder() if skip_special_tokens else {}
        self._silent = {token for token, mark in marks.items() if mark.special}
        """Ids that say nothing: they end no run of bytes."""
        self._window: list[int] = []
        self._before = 0
        """Ids of the window that were told already, and stand there for the others' sake."""
        self._told = 0
        """Characters of the window's text that were told."""
        self._run: list[int] = []
        """Single bytes that follow on the window."""
        self._lost = False
        """The run was no text where it became too long: none of its bytes is."""

    def push(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` make certain."""
        return "".join(map(self._one, ids))

    def flush(self) -> str:
        """What was held back, as it is: no more ids come."""
        return self._next(self._run, whole=True)

    def _one(self, token: int) -> str:
        if token in self._silent or (self._bytes and self._tokenizer.id_to_token(token) is None):
            return ""
        if token not in self._bytes:
            self._lost = False
            return self._next([*self._run, token])
        if self._lost:
            return BROKEN
        self._run.append(token)
        return self._part() if len(self._run) >= self.LONGEST else ""

    def _next(self, ids: Sequence[int], *, whole: bool = False) -> str:
        """What ``ids`` say behind the window, which then is theirs. A part of a character at the end is only told ``whole``."""
        self._window += ids
        self._run = []
        text = self._decode(self._window)
        # Where bytes are spelled as letters, the last U+FFFD alone can still become another character.
        certain = text[:-1] if text.endswith(BROKEN) and not whole else text
        new = certain[self._told :]
        self._told = max(self._told, len(certain))
        if new and certain == text:
            self._begin(self._window[self._before :])
        return new

    def _part(self) -> str:
        """What a long run says for certain: all of it but a part of a character at its end."""
        run = self._run
        before = self._next(())
        said = bytes(self._bytes[token] for token in run)
        self._begin(self._tokenizer.encode("a", add_special_tokens=False).ids)  # what follows is no text's start
        for kept in range(_UNFINISHED):
            try:
                text = said[: len(said) - kept].decode()
            except UnicodeDecodeError:
                continue
            self._run = run[len(said) - kept :]
            return before + text
        self._lost = True
        return before + BROKEN * len(said)

    def _begin(self, ids: list[int]) -> None:
        """A window of what was told."""
        self._window, self._before = ids, len(ids)
        self._told = len(self._decode(ids))

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)


def decoded(tokenizer: Tokenizer, ids: Sequence[int], skip_special_tokens: bool) -> str:
    """The text of a whole answer: what a stream of it says."""
    return "".join(spelled(tokenizer, ids, skip_special_tokens))


def spelled(tokenizer: Tokenizer, ids: Sequence[int], skip_special_tokens: bool) -> list[str]:
    """The same, token by token: of those that one character spans, the last has it and the others are empty."""
    stream = Detokenizer(tokenizer, skip_special_tokens)
    parts = [stream.push([token]) for token in ids]
    return [*parts[:-1], *(part + stream.flush() for part in parts[-1:])]


def _bytes(tokenizer: Tokenizer) -> dict[int, int]:
    """Id -> byte of the tokens that stand for single bytes; none where the tokenizer has no such."""
    named = {tokenizer.token_to_id(f"<0x{value:02X}>"): value for value in range(256)}
    found = {token: value for token, value in named.items() if token is not None}
    letter = tokenizer.token_to_id("<0x41>")
    return found if letter is not None and tokenizer.decode([letter]) == "A" else {}
