"""Where a stream may be cut: never inside a UTF-8 character, so that each piece decodes by itself."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
# A character has at most four bytes and a token at least one; twice that, because a token may end one character and begin
# the next. A model that really says broken UTF-8 is not waited for any longer.
_PATIENCE = 8


class Pieces:
    """Says when the tokens since the last piece end where a character ends. Without a tokenizer every token is a piece."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._alone: dict[int, bool] = {}

    @classmethod
    def of(cls, folder: str) -> "Pieces":
        """By the tokenizer.json of a folder; with no folder, or none in it, every token is a piece."""
        file = Path(folder) / "tokenizer.json"
        return cls(Tokenizer.from_file(str(file)) if folder and file.is_file() else None)

    def whole(self, tokens: Sequence[int]) -> bool:
        """Whether a piece of exactly these tokens may be sent."""
        if self._tokenizer is None or len(tokens) >= _PATIENCE:
            return True
        if len(tokens) > 1:
            return self._ends(tokens)
        token = tokens[0]
        if token not in self._alone:
            self._alone[token] = self._ends(tokens)
        return self._alone[token]

    def _ends(self, tokens: Sequence[int]) -> bool:
        assert self._tokenizer is not None  # noqa: S101 (whole() returned before)
        return not self._tokenizer.decode(list(tokens), skip_special_tokens=False).endswith(_REPLACEMENT)
