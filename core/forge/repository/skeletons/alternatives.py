"""The likeliest tokens of each place, as text. Stands beside tensorrt_llm_bls's model.py, which imports it."""

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

COUNT = "num_top_log_probs"
"""The input that asks for so many."""
NEEDED = ("top_ids", "top_log_probs", "output_log_probs")
"""What tensorrt_llm says of them."""
_WORD = "\u2581"
"""How SentencePiece writes the blank before a word; decoding a token alone drops it."""


def told(tokenizer: Tokenizer, found: Mapping[str, NDArray[np.generic]], parts: Sequence[Sequence[str]]) -> list[str]:
    """For each sequence a JSON list over its new tokens, in the words of vLLM's backend: {id: {"logprob", "decoded_token"}},
    the token that was picked first, then the likeliest. ``parts`` are the texts of the new tokens."""
    ids, tops, log_probs, picked = (found[name][0] for name in ("top_ids", "top_log_probs", "output_log_probs", "output_ids"))
    said: list[str] = []
    for place, texts in enumerate(parts):
        count = len(texts)
        # Of one sequence all log-probabilities so far come each time; several come whole, and short ones are filled up.
        own = log_probs[place][:count] if len(parts) > 1 else log_probs[place][log_probs.shape[-1] - count :]
        steps = zip(
            picked[place][:count].tolist(), own.tolist(), texts, ids[place].tolist(), tops[place].tolist(), strict=False
        )
        said.append(json.dumps([dict(_position(tokenizer, *step)) for step in steps]))
    return said


def _position(
    tokenizer: Tokenizer, picked: int, log_prob: float, text: str, ids: list[int], tops: list[float]
) -> Iterator[tuple[int, dict[str, object]]]:
    yield picked, {"logprob": log_prob, "decoded_token": text}
    for token, likely in zip(ids, tops, strict=True):
        if token != picked:
            yield token, {"logprob": likely, "decoded_token": _text(tokenizer, token)}


def _text(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself, special ones too."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    begins = (tokenizer.id_to_token(token) or "").startswith(_WORD) and not text.startswith(" ")
    return f" {text}" if begins else text
