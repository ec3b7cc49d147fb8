"""Projections, ``x @ weight.T + bias``, in two ways: by machine code made for them, and by numpy where there is none.

Either way the bits of a sequence's rows depend on that sequence alone. The two ways are the same up to rounding.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .arrays import Array, Floats
from .checkpoint import widened
from .cores import Cores
from .faults import KernelFault
from .kernel import Matrix, processor

_PART_ROWS = 24
"""Rows of weights in a part that a core is handed: some tiles of the kernel."""
_STEP_CORES, _PROMPT_CORES = 4, 16
"""Cores that the kernel uses at most: for a token of each, more of them would wait for memory. Not half of those that are here,
as numpy: on two busy cores eight streams through Triton had 152 tokens/s with both, and 108 with one."""
# A block and one sequence's vector stay in a core's cache while every sequence is multiplied with it: the weights come
# from memory once a step. Measured best between 0.5 and 1 MiB on cores with 1 MiB of L2.
_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """Weights [outputs, inputs] as they are stored, which stay where they are (a mapped file, as a rule).

    ``scale`` [outputs] multiplies each row's sums where the weights are whole numbers; then the bias is added.
    """

    stored: Array
    bias: Floats | None = None
    scale: Floats | None = None


Projection = Callable[[Floats, Sequence[int]], Floats]
"""x [n, inputs], and how many of its rows belong to each sequence, one after the other -> [n, outputs of all its weights]."""


class Projector(Protocol):
    """Makes projections of weights that are multiplied with the same vectors."""

    compiled: bool
    """By machine code."""
    says: str
    """How, for the log."""

    def __call__(self, *weights: Weight) -> Projection: ...


def projector() -> Projector:
    """The kernel where this machine can have it, or else numpy."""
    try:
        return ByKernel()
    except KernelFault as fault:
        return ByNumpy(f", which takes several times as long: {fault}")


class ByKernel:
    """By machine code; KernelFault where this machine has none."""

    compiled = True

    def __init__(self, steps: Cores | None = None, prompts: Cores | None = None) -> None:
        self.says = f"machine code for {processor()}"
        here = len(os.sched_getaffinity(0))
        self._steps = steps or Cores(min(here, _STEP_CORES))
        self._prompts = prompts or Cores(min(here, _PROMPT_CORES))

    def __call__(self, *weights: Weight) -> Projection:
        matrices = [Matrix(weight.stored) for weight in weights]
        ends = np.cumsum([len(weight.stored) for weight in weights]).tolist()
        finish = _finish(weights)

        def project(x: Floats, rows: Sequence[int]) -> Floats:
            x = np.ascontiguousarray(x)
            out = np.empty((len(x), ends[-1]), np.float32)
            parts = [_Rows(matrix, x, out[:, end - matrix.outputs : end]) for matrix, end in zip(matrices, ends, strict=True)]
            (self._steps if len(rows) == len(x) else self._prompts).multiply(parts)
            return finish(out)

        return project


@dataclass(frozen=True, slots=True)
class _Rows:
    """A product by the kernel, in parts of some rows of weights."""

    matrix: Matrix
    x: Floats
    out: Floats

    @property
    def parts(self) -> int:
        return -(-int(self.matrix.outputs) // _PART_ROWS)

    @property
    def size(self) -> int:
        return int(_PART_ROWS * self.matrix.row_bytes * len(self.x))

    def multiply(self, first: int, last: int) -> None:
        self.matrix.multiply(self.x, self.out, first * _PART_ROWS, min(last * _PART_ROWS, self.matrix.outputs))


class ByNumpy:
    """By numpy: a sequence's several rows by one matrix product, and rows of different sequences each by itself."""

    compiled = False

    def __init__(self, why: str = "", cores: Cores | None = None) -> None:
        self.says = f"numpy{why}"
        self._cores = cores or Cores()

    def __call__(self, *weights: Weight) -> Projection:
        wide = [widened(weight.stored) for weight in weights]
        blocked, finish = [_Blocked(weight) for weight in wide], _finish(weights)

        def each(x: Floats) -> list[Floats]:
            vectors = x[None, :, :, None]
            products = [one.product(vectors) for one in blocked]
            self._cores.multiply(products)
            return [one.gathered(product) for one, product in zip(blocked, products, strict=True)]

        def project(x: Floats, rows: Sequence[int]) -> Floats:
            if len(rows) == len(x):
                return finish(np.concatenate(each(x), axis=1))
            parts = np.split(x, np.cumsum(rows)[:-1])
            found = [each(part) if len(part) == 1 else [part @ weight.T for weight in wide] for part in parts]
            return finish(np.concatenate([np.concatenate(part, axis=1) for part in found]))

        return project


class _Blocked:
    """Weights in blocks, for matrix-vector products of rows of different sequences.

    A matrix product's bits depend on how many rows it has, so every row is multiplied by itself (a matrix-vector product per
    block and row), block by block in one numpy call: numpy's outer loop walks blocks, then rows.
    """

    def __init__(self, weight: Floats) -> None:
        outputs, inputs = weight.shape
        blocks = _blocks(outputs, math.ceil(weight.nbytes / _BLOCK_BYTES))
        rows = outputs // blocks
        even = blocks * rows
        self._blocks = weight[:even].reshape(blocks, 1, rows, inputs)
        self._rest = weight[even:].reshape(1, 1, outputs - even, inputs)

    def product(self, vectors: Floats) -> "_Blocks":
        """Its even blocks with vectors [1, n, inputs, 1], and room for what comes of them."""
        room = (len(self._blocks), vectors.shape[1], self._blocks.shape[2], 1)
        return _Blocks(self._blocks, vectors, np.empty(room, np.float32))

    def gathered(self, product: "_Blocks") -> Floats:
        """The results of ``product``, and those of the uneven rest -> [n, outputs]."""
        count = product.vectors.shape[1]
        y: Floats = product.out[..., 0].transpose(1, 0, 2).reshape(count, -1)
        if self._rest.size:
            y = np.concatenate((y, np.matmul(self._rest, product.vectors).reshape(count, -1)), axis=1)
        return y


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Blocks [b, 1, rows, inputs], vectors [1, n, inputs, 1], and where the results go [b, n, rows, 1]."""

    blocks: Floats
    vectors: Floats
    out: Floats

    @property
    def parts(self) -> int:
        return len(self.blocks)

    @property
    def size(self) -> int:
        return int(self.blocks[0].nbytes * self.vectors.shape[1])

    def multiply(self, first: int, last: int) -> None:
        np.matmul(self.blocks[first:last], self.vectors, out=self.out[first:last])


def _blocks(outputs: int, least: int) -> int:
    """In how many equal blocks to cut ``outputs`` rows: the first count from ``least`` on that leaves no rest, if near."""
    wanted = min(max(1, least), outputs)
    return next((count for count in range(wanted, min(2 * wanted, outputs) + 1) if outputs % count == 0), wanted)


def _finish(weights: Sequence[Weight]) -> Callable[[Floats], Floats]:
    """Scales sums and adds biases, in place."""
    scale = _joined([(weight.scale, len(weight.stored)) for weight in weights], 1.0)
    bias = _joined([(weight.bias, len(weight.stored)) for weight in weights], 0.0)

    def finish(y: Floats) -> Floats:
        if scale is not None:
            y *= scale
        if bias is not None:
            y += bias
        return y

    return finish


def _joined(parts: Sequence[tuple[Floats | None, int]], otherwise: float) -> Floats | None:
    if all(part is None for part, _ in parts):
        return None
    return np.concatenate([np.full(count, otherwise, np.float32) if part is None else part for part, count in parts])
