"""The arithmetic of a decoder's parts, arranged so that a row's result never depends on the rows beside it."""

import math

import numpy as np

from .arrays import Floats, Ints
from .shape import Rotary

_GELU_SCALE = np.float32(math.sqrt(2.0 / math.pi))
_GELU_CUBIC = np.float32(0.044715)
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)


class Norm:
    """RMS normalisation over the last axis; the offset is 1 where a family stores weights around zero (Gemma)."""

    def __init__(self, weight: Floats, offset: float, epsilon: float) -> None:
        self._weight = weight + np.float32(offset) if offset else weight
        self._epsilon = np.float32(epsilon)
        self._share = np.float32(1.0 / weight.shape[-1])

    def __call__(self, x: Floats) -> Floats:
        power = np.add.reduce(x * x, axis=-1, keepdims=True)
        power *= self._share
        power += self._epsilon
        y: Floats = np.divide(x, np.sqrt(power, out=power))
        y *= self._weight
        return y


def silu(x: Floats) -> Floats:
    """x times its logistic; where exp(-x) overflows the result is rightly -0."""
    y = np.exp(-x)
    y += _ONE
    return np.divide(x, y, out=y)


def gelu(x: Floats) -> Floats:
    """The tanh form of GELU, which is what Gemma was trained with."""
    y = x * x
    y *= _GELU_CUBIC
    y += _ONE
    y *= x
    y *= _GELU_SCALE
    np.tanh(y, out=y)
    y += _ONE
    y *= x
    y *= _HALF
    return y


def soften(scores: Floats, cap: float) -> Floats:
    """Scores squeezed smoothly into (-cap, cap), in place; a cap of 0 leaves them."""
    if cap:
        scores /= np.float32(cap)
        np.tanh(scores, out=scores)
        scores *= np.float32(cap)
    return scores


def softmax(scores: Floats) -> Floats:
    """exp of the scores less their maximum, in place, over the last axis; NOT divided by its sum (the caller does, later)."""
    scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    return np.exp(scores, out=scores)


class Turns:
    """Cosines and signed sines of one rotary by position, made as far as positions were asked for."""

    def __init__(self, rotary: Rotary, head_dim: int) -> None:
        self._frequencies = frequencies(rotary, head_dim)
        self._cosines = np.empty((0, 1, 1, head_dim // 2), np.float32)
        self._sines = np.empty((0, 1, 2, head_dim // 2), np.float32)

    def at(self, positions: Ints) -> tuple[Floats, Floats]:
        """For [n] positions: cosines [n, 1, 1, half] and sines [n, 1, 2, half], the first of each pair negated."""
        reach = int(positions.max()) + 1
        if reach > len(self._cosines):
            self._make(max(256, 2 * reach))
        return self._cosines[positions], self._sines[positions]

    def _make(self, count: int) -> None:
        # float32 times float32, as transformers multiplies them: at far positions its rounding is part of the model.
        angles = np.arange(count, dtype=np.float32)[:, None] * self._frequencies
        sines = np.sin(angles)
        self._cosines = np.cos(angles)[:, None, None, :]
        self._sines = np.stack((-sines, sines), axis=1)[:, None]


def turn(heads: Floats, cosines: Floats, sines: Floats) -> Floats:
    """Rotates heads [n, heads, 2, half]: (a, b) -> (a cos - b sin, b cos + a sin)."""
    turned = heads * cosines
    turned += heads[:, :, ::-1] * sines
    return turned


def frequencies(rotary: Rotary, head_dim: int) -> Floats:
    """Turns per position [head_dim / 2], stretched as the rotary's kind says."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse: Floats = np.reciprocal(np.power(np.float32(rotary.theta), exponents, dtype=np.float32))
    if rotary.kind == "linear":
        return np.divide(inverse, np.float32(rotary.factor))
    if rotary.kind != "llama3":
        return inverse
    # Llama 3.1: long wavelengths are stretched, short ones kept, those between blended.
    wavelengths = np.float32(2 * math.pi) / inverse
    smooth = (np.float32(rotary.original) / wavelengths - np.float32(rotary.low)) / np.float32(rotary.high - rotary.low)
    stretched = inverse / np.float32(rotary.factor)
    blended = (_ONE - smooth) * stretched + smooth * inverse
    far = wavelengths > rotary.original / rotary.low
    near = wavelengths < rotary.original / rotary.high
    return np.where(far, stretched, np.where(near, inverse, blended)).astype(np.float32)
