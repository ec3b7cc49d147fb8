"""What the stand-in says where it has to say what a checkpoint says: forge's twin computes it, tokenizers reads and writes it.

Only of a checkpoint whose config.json asks for it (``SPEAKS``); of any other the stand-in counts.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...sampling_params import SamplingParams

SPEAKS = "standin_speaks"


class Speaker:
    """One checkpoint."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer  # neither is beside the stand-in where it only counts

        from forge.twin.loading import load

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._decoder = load(folder)
        self._ends = self._end_tokens(folder)

    @classmethod
    def of(cls, folder: Path) -> "Speaker | None":
        return cls(folder) if _json(folder / "config.json").get(SPEAKS) else None

    def ids(self, prompt: str) -> list[int]:
        return self._tokenizer.encode(prompt).ids

    def speak(self, prompt: str, params: SamplingParams) -> Iterator[tuple[int, float, str, str | None]]:
        """Each token with its log-probability, the text that it adds, and why it is the last."""
        memory, draws = self._decoder.start(), np.random.default_rng(params.seed)
        logits = self._decoder.prompt(memory, np.array(self.ids(prompt)))[0]
        said, shown = list[int](), ""
        for left in reversed(range(params.max_tokens or 16)):
            log_probs = _log_softmax(logits)
            token = _pick(log_probs, params, draws)
            said.append(token)
            ended = token in self._ends and len(said) >= params.min_tokens
            text = self._tokenizer.decode(said[:-1] if ended else said)
            whole = text if ended or not left else text.rstrip("\ufffd")
            whole, stopped = _cut(whole, params)
            reason = "stop" if ended or stopped else None if left else "length"
            yield token, float(log_probs[token]), whole[len(shown) :], reason
            if reason:
                return
            shown = whole
            logits = self._decoder.step([memory], [token])[0]

    def _end_tokens(self, folder: Path) -> set[int]:
        """The tokenizer's own, and those of generation_config.json, as vLLM has it."""
        stated: Any = _json(folder / "generation_config.json").get("eos_token_id")
        several: list[Any] = stated if isinstance(stated, list) else [stated]  # pyright: ignore[reportUnknownVariableType]
        own = _json(folder / "tokenizer_config.json").get("eos_token")
        return {int(each) for each in (*several, self._tokenizer.token_to_id(str(own))) if each is not None}


def _pick(log_probs: Any, params: SamplingParams, draws: np.random.Generator) -> int:
    allowed = log_probs
    if params.allowed_token_ids:
        allowed = np.full_like(log_probs, -np.inf)
        allowed[params.allowed_token_ids] = log_probs[params.allowed_token_ids]
    if not params.temperature:
        return int(np.argmax(allowed))
    return int(np.argmax(allowed / params.temperature + draws.gumbel(size=len(allowed))))


def _cut(text: str, params: SamplingParams) -> tuple[str, bool]:
    words = [params.stop] if isinstance(params.stop, str) else params.stop or []
    places = [place for word in words if (place := text.find(word)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def _json(file: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(file.read_text())) if file.is_file() else {}
