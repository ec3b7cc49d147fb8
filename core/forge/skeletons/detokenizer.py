"""Token ids as they come -> text as it grows. Stands beside tensorrt_llm_bls's model.py, which imports it."""

from collections.abc import Sequence

from tokenizers import Tokenizer


class Detokenizer:
    """One sequence's ids as they come -> its text as it grows; the pieces join to what decoding all at once would give.

    The last piece is decoded again together with what is new, so that a space which the tokenizer drops at the start of a text
    is not dropped in the middle. A character that is not whole yet is held back: tokenizers show it as U+FFFD.
    """

    LONGEST = 32  # U+FFFD in a row: SentencePiece shows a whole run of bytes so until the run is complete

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window: list[int] = []
        self._told = 0
        self._told_text = ""

    def push(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` make certain."""
        self._window += ids
        text = self._decode(self._window)
        broken = len(text) - len(text.rstrip("\ufffd"))
        return "" if 0 < broken < self.LONGEST else self._tell(text)

    def flush(self) -> str:
        """What was held back, as it is: no more ids come."""
        return self._tell(self._decode(self._window))

    def _tell(self, text: str) -> str:
        new = text[len(self._told_text) :]
        if new:
            self._window = self._window[self._told :]
            self._told = len(self._window)
            self._told_text = self._decode(self._window)
        return new

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)
