"""A model's tokenizer by its tokenizer.json, for counting and for making prompts."""

import re
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blake3 import blake3

FILE = "tokenizer.json"
_WORD = re.compile(r"[a-z]{3,12}")
_ENOUGH = 4096


class TokenizerFolder:
    """The tokenizer of ``folder``, read when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE

    @property
    def missing(self) -> str:
        """Why it cannot be used here; empty where it can."""
        if not self._file.is_file():
            return f"{self._file.parent} has no {FILE}"
        if find_spec("tokenizers") is None:
            return "the package tokenizers is not installed (pip install 'triton-forge[bench]')"
        return ""

    @property
    def digest(self) -> str:
        """BLAKE3 of tokenizer.json; empty without one."""
        return blake3(self._file.read_bytes()).hexdigest() if self._file.is_file() else ""

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)

    def spoken(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def spans(self, text: str) -> tuple[tuple[str, int], ...]:
        """``spans`` by this tokenizer."""
        return _grouped(text, self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def words(self) -> tuple[str, ...]:
        """Plain lower-case words. They are tried behind others, as they will stand in a prompt."""
        numbered: dict[str, int] = self._tokenizer.get_vocab()
        vocabulary = sorted(numbered.items(), key=lambda pair: pair[1])
        marked = (
            word[1:] for word, _ in vocabulary if word[:1] in ("\u0120", "\u2581")
        )  # how BPE and SentencePiece write a space
        plain = (word for word, _ in vocabulary)
        found: list[str] = []
        for candidates in (marked, plain):
            for word in candidates:
                if _WORD.fullmatch(word) and self.spoken(f"the {word} {word}") == self.spoken("the") + 2:
                    found.append(word)
                    if len(found) == _ENOUGH:
                        return tuple(found)
            if len(found) > 1:
                break
        return tuple(found)

    @cached_property
    def _tokenizer(self) -> Any:
        """``tokenizers.Tokenizer``, whose package not every machine has."""
        return import_module("tokenizers").Tokenizer.from_file(str(self._file))


def spans(folder: Path, text: str) -> tuple[tuple[str, int], ...]:
    """The tokens of ``text`` as (text, how many): several where a character spans them. Joined they are ``text`` again.

    Empty where the folder has no tokenizer.json, or the package ``tokenizers`` is not installed here.
    """
    held = TokenizerFolder(folder)
    return () if held.missing else held.spans(text)


def _grouped(text: str, offsets: Sequence[tuple[int, int]]) -> tuple[tuple[str, int], ...]:
    groups: list[tuple[int, int]] = []  # where each ends, and of how many tokens it is
    for begin, end in offsets:
        if groups and begin < groups[-1][0]:  # tokens of one character all state that character
            reached, count = groups.pop()
            groups.append((max(reached, end), count + 1))
        else:
            groups.append((end, 1))
    begins = (0, *(end for end, _ in groups[:-1]))
    return tuple((text[begin:end], count) for begin, (end, count) in zip(begins, groups, strict=True))
