"""From logits to a token, in TensorRT-LLM's order: bias, temperature, penalties, bans; then min-p, top-k, and top-p within."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats, Ints

Words = tuple[tuple[int, ...], ...]
Top = tuple[Ints, Floats]
"""Ids of the likeliest tokens at one place, likeliest first, and the logarithms of their probabilities."""

# The nucleus nearly always lies within these many tokens; a whole sort of the vocabulary costs ten times more.
_NUCLEUS = 1024


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one sequence picks its tokens. With neither top_k nor top_p it takes the likeliest, as TensorRT-LLM does."""

    top_k: int = 0
    top_p: float = 0.0
    min_p: float = 0.0
    temperature: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    bad_words: Words = ()
    bias: Floats | None = field(default=None, repr=False, compare=False)
    top_p_min: float = 0.0
    top_p_decay: float = 1.0
    top_p_reset: int = -1

    @property
    def greedy(self) -> bool:
        return self.top_k == 1 or self.temperature == 0.0 or (self.top_k == 0 and self.top_p == 0.0)

    @property
    def shapes(self) -> bool:
        """Whether logits are changed at all before a token is picked from them."""
        penalised = self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        return bool(penalised or self.temperature not in {0.0, 1.0} or self.min_tokens or self.bad_words) or (
            self.bias is not None
        )


class Shaper:
    """Changes logits as one sequence's past and its Sampling demand. The past is its prompt and all it has said; ``ends`` are
    the tokens that it may not say before min_tokens."""

    def __init__(self, sampling: Sampling, prompt: Ints, ends: Sequence[int], vocabulary: int) -> None:
        self._sampling, self._ends = sampling, list(ends)
        self._past = prompt.tolist()
        self._said = 0
        self._counts = np.bincount(prompt, minlength=vocabulary).astype(np.float32)

    def fork(self) -> "Shaper":
        """A shaper with the same past, for a beam that goes another way."""
        other = object.__new__(Shaper)
        other._sampling, other._ends, other._said = self._sampling, self._ends, self._said
        other._past, other._counts = list(self._past), self._counts.copy()
        return other

    def heard(self, token: int) -> None:
        """Adds a token to the past."""
        self._past.append(token)
        self._counts[token] += 1.0
        self._said += 1

    def __call__(self, logits: Floats) -> Floats:
        """The changed logits [vocabulary]; the given ones when nothing is to change."""
        sampling = self._sampling
        if not sampling.shapes:
            return logits
        x = logits.copy() if sampling.bias is None else logits + sampling.bias
        if sampling.temperature not in {0.0, 1.0}:
            x /= np.float32(sampling.temperature)
        self._penalise(x)
        if self._said < sampling.min_tokens:
            x[self._ends] = -np.inf
        for word in sampling.bad_words:
            before = list(word[:-1])
            if not before or self._past[-len(before) :] == before:
                x[word[-1]] = -np.inf
        return x

    def _penalise(self, x: Floats) -> None:
        sampling = self._sampling
        if sampling.repetition_penalty == 1.0 and not sampling.presence_penalty and not sampling.frequency_penalty:
            return
        seen = np.flatnonzero(self._counts)
        scores, times = x[seen], np.float32(sampling.repetition_penalty)
        scores = np.where(scores > 0, scores / times, scores * times)
        scores -= np.float32(sampling.presence_penalty)
        scores -= np.float32(sampling.frequency_penalty) * self._counts[seen]
        x[seen] = scores


class Picker:
    """Picks tokens for one sequence; one draw of its own generator per token, so a seed means the same text anywhere."""

    def __init__(self, sampling: Sampling, sample: int) -> None:
        self._sampling = sampling
        self._top_p = sampling.top_p
        # Further samples of one request draw from seeds that derive from its own.
        self._generator = np.random.default_rng(sampling.seed if sample == 0 else [sampling.seed, sample])

    def __call__(self, x: Floats) -> int:
        if self._sampling.greedy:
            return int(x.argmax())
        token = self._draw(x)
        self._decay(token)
        return token

    def _draw(self, x: Floats) -> int:
        k, p = self._sampling.top_k, self._top_p
        if self._sampling.min_p:
            x = np.where(x < x.max() + np.log(np.float32(self._sampling.min_p)), np.float32(-np.inf), x)
        if k:
            ids = _largest(x, min(k, len(x)))
            weights = np.exp((x[ids] - x[ids[0]]).astype(np.float64))
            return self._among(ids, weights, p if 0.0 < p < 1.0 else 1.0, float(weights.sum()))
        weights = np.exp(x - x.max()).astype(np.float64)
        total = float(weights.sum())
        if p >= 1.0:
            reached: NDArray[np.float64] = np.cumsum(weights)
            return min(_place(reached, self._generator.random() * float(reached[-1])), len(x) - 1)
        ids = _largest(x, min(_NUCLEUS, len(x)))
        if float(weights[ids].sum()) < p * total:
            ids = _largest(x, len(x))
        return self._among(ids, weights[ids], p, total)

    def _among(self, ids: Ints, weights: NDArray[np.float64], p: float, total: float) -> int:
        """One of the first ids whose weights reach the share p of the total, by their weights."""
        reached: NDArray[np.float64] = np.cumsum(weights)
        kept = min(int(np.count_nonzero(reached < p * total)) + 1, len(ids))
        point = self._generator.random() * float(reached[kept - 1])
        return int(ids[min(_place(reached, point), kept - 1)])

    def _decay(self, token: int) -> None:
        sampling = self._sampling
        if sampling.top_p_decay != 1.0:
            shrunk = max(sampling.top_p_min, self._top_p * sampling.top_p_decay)
            self._top_p = sampling.top_p if token == sampling.top_p_reset else shrunk


def _place(reached: NDArray[np.float64], point: float) -> int:
    """The first place where the running sum lies above ``point``."""
    return int(np.count_nonzero(reached <= point))


def _largest(x: Floats, count: int) -> Ints:
    """The ids of the ``count`` largest logits, largest first, equal ones by id."""
    ids = np.arange(len(x)) if count == len(x) else np.sort(np.argpartition(x, -count)[-count:])
    return ids[np.argsort(-x[ids], kind="stable")]


def likeliest(log_probs: Floats, count: int) -> Top:
    """The ``count`` likeliest tokens."""
    ids = _largest(log_probs, min(count, len(log_probs)))
    return ids, log_probs[ids]


def log_softmax(x: Floats) -> Floats:
    """Logarithms of the probabilities over the last axis."""
    y: Floats = x - x.max(axis=-1, keepdims=True)
    y -= np.log(np.exp(y).sum(axis=-1, keepdims=True))
    return y
