"""Quantization in the stand-in: weights are rounded to what their type can say, and written as the numbers that it stands for.

So answers can differ from the checkpoint's as a real engine's do. Activations and the cache are not quantized, and scales are
taken from the weights alone: no calibration, no smoothing. What is rounded are the matrices of the layers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]
_LAYERS = re.compile(r"(layers|block|h)\.\d+\..*\.weight$")
_E4M3, _E2M1 = np.float32(448.0), np.float32(6.0)
"""The largest number of each type."""


@dataclass(frozen=True)
class Grid:
    """``fit`` rounds numbers up to ``most``; scales are per ``group`` inputs, 0 for all of an output's, -1 for the matrix."""

    most: float
    fit: Callable[[Numbers], Numbers]
    group: int = 0


def alter(algorithm: str | None, group_size: int) -> Callable[[str, Numbers], Numbers]:
    """A tensor's name and numbers -> its numbers under a quant_algo."""
    grid = _grid(algorithm, group_size)

    def rounded(name: str, numbers: Numbers) -> Numbers:
        return on(grid, numbers) if grid and numbers.ndim == 2 and _LAYERS.search(name) else numbers

    return rounded


def on(grid: Grid, numbers: Numbers) -> Numbers:
    """``numbers`` [outputs, inputs], each the nearest that its group's scale and the grid can say."""
    outputs, inputs = numbers.shape
    width = grid.group if 0 < grid.group < inputs and inputs % grid.group == 0 else inputs
    groups = numbers.reshape(1, 1, -1) if grid.group < 0 else numbers.reshape(outputs, -1, width)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(grid.most), np.float32(1))
    return (grid.fit((groups / scale).astype(np.float32)) * scale).reshape(numbers.shape).astype(np.float32)


def _grid(algorithm: str | None, group_size: int) -> Grid | None:
    if algorithm is None:
        return None
    if algorithm.startswith("W8A8_SQ"):
        return Grid(127.0, np.rint, -1 if "_SQ_PER_TENSOR" in algorithm else 0)
    known = {
        "FP8": Grid(float(_E4M3), _e4m3, -1),
        "FP8_PER_CHANNEL_PER_TOKEN": Grid(float(_E4M3), _e4m3),
        "NVFP4": Grid(float(_E2M1), _e2m1, 16),
        "W8A16": Grid(127.0, np.rint),
        "W8A16_GPTQ": Grid(127.0, np.rint, group_size),
        "W4A16": Grid(7.0, np.rint),
        **dict.fromkeys(("W4A16_GPTQ", "W4A16_AWQ", "W4A8_AWQ"), Grid(7.0, np.rint, group_size)),
    }
    return known[algorithm]


def _e4m3(numbers: Numbers) -> Numbers:
    """To three bits behind the first; steps of 2**-9 below 2**-6."""
    return _float(numbers, bits=3, least=-6)


def _e2m1(numbers: Numbers) -> Numbers:
    """0, 0.5, 1, 1.5, 2, 3, 4, 6."""
    return _float(numbers, bits=1, least=0)


def _float(numbers: Numbers, bits: int, least: int) -> Numbers:
    _, exponents = np.frexp(numbers)
    step: Numbers = np.exp2((np.maximum(exponents - 1, least) - bits).astype(np.float32))
    rounded: Numbers = np.rint(numbers / step) * step
    return rounded
