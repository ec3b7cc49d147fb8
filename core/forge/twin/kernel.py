"""The product of weights with vectors as machine code, made for this processor when a decoder is opened (by llvmlite).

A result's bits depend on its row of weights and its vector alone, so sequences need no care to be the same alone and among
others, and weights come from memory once for all of them. Weights of 16 and 8 bits are read as they are stored.
"""

import ctypes
import importlib
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .arrays import Array, Floats
from .attention_code import ENTRY as ATTEND, attention
from .faults import KernelFault
from .kernel_code import ENTRY, LANES, code

_KINDS = {"float32": "float", "float16": "half", "uint16": "bfloat", "int8": "i8"}
"""numpy's types of stored weights -> LLVM's; bfloat16 is numpy's uint16."""
_TILES = {"avx512f": (6, 4), "fma": (3, 2), "neon": (2, 2)}
"""Rows and vectors of a tile by what the processor has: as many as its registers hold. All of them multiply and add in one."""
_VECTOR_BYTES = 512 << 10
"""Bytes of vectors that are multiplied at once: they stay in a core's cache while the weights go by."""
_Code = Callable[..., None]
"""A function of machine code: addresses, then counts."""


class Matrix:
    """Weights [outputs, inputs] that can be multiplied; KernelFault where there is no machine code for that.

    Any thread may do so, and others run meanwhile.
    """

    def __init__(self, weight: Array) -> None:
        self._weight = np.ascontiguousarray(weight)
        self._product, self._place = product(self._weight.dtype), self._weight.ctypes.data
        self.outputs, self._inputs = self._weight.shape
        self.row_bytes = self._inputs * self._weight.itemsize

    def multiply(self, x: Floats, out: Floats, first: int, last: int) -> None:
        """out[:, first:last] = x @ weight[first:last].T, for x [n, inputs] that lies in memory as C has it, and out [n,
        outputs] whose rows do."""
        inputs, stride = self._inputs, out.strides[0] // 4
        if x.shape[1] != inputs or out.shape != (len(x), self.outputs):
            raise ValueError(f"vectors {x.shape} do not fit weights {self._weight.shape} and room {out.shape}")
        most = max(32, _VECTOR_BYTES // (4 * inputs))
        rows, vectors, results = self._place + first * self.row_bytes, x.ctypes.data, out.ctypes.data + 4 * first
        for start in range(0, len(x), most):
            count = min(most, len(x) - start)
            self._product(rows, vectors + 4 * start * inputs, results + 4 * start * stride, last - first, inputs, count, stride)


def processor() -> str:
    """The processor that the code is for, as LLVM names it; KernelFault where there can be none."""
    product(np.dtype(np.float32))
    return str(_binding().get_host_cpu_name())


@dataclass(frozen=True, slots=True)
class Past:
    """Where a sequence's keys and values [layers, kv heads, capacity, dim] lie, and how many positions are in use."""

    keys: int
    values: int
    capacity: int
    length: int

    @classmethod
    def of(cls, keys: Floats, values: Floats, length: int) -> "Past":
        """Of arrays that lie in memory as C has them, and outlive it."""
        return cls(keys.ctypes.data, values.ctypes.data, keys.shape[2], length)


class Attention:
    """The attention of one new position of each of some sequences; KernelFault where there is no machine code for it.

    For one thread at a time.
    """

    def __init__(self, heads: int, group: int, dim: int) -> None:
        """``heads`` kv heads, each with ``group`` query heads, of ``dim`` elements, a multiple of LANES."""
        self._heads, self._group, self._dim = heads, group, dim
        self._attend = function(engine(np.dtype(np.float32)), ATTEND, 7, 5)
        self._scores = np.empty(0, np.float32)

    def __call__(self, layer: int, window: int, heads: Floats, values: Floats, pasts: Sequence[Past], out: Floats) -> None:
        """Puts the new keys and values into each past, and what the queries see of the last ``window`` positions (0: of all) to
        ``out`` [n, query heads * dim].

        ``heads`` [n, query heads + kv heads, dim] are queries and keys; each row of these arrays lies in memory as C has it.
        """
        if heads.shape[1:] != (self._heads * (self._group + 1), self._dim) or values.shape[1:] != (self._heads, self._dim):
            raise ValueError(f"heads {heads.shape} and values {values.shape} are not those of the model")
        width = 4 * self._dim
        queries, new, found = heads.ctypes.data, values.ctypes.data, out.ctypes.data
        query_step, new_step, found_step = heads.strides[0], values.strides[0], out.strides[0]
        keys = self._heads * self._group * width
        scores = self._room(max(past.length for past in pasts) + 1)
        for row, past in enumerate(pasts):
            first = max(0, past.length + 1 - window) if window else 0
            at, query = (layer * self._heads * past.capacity + first) * width, queries + row * query_step
            self._attend(
                query,
                query + keys,
                new + row * new_step,
                past.keys + at,
                past.values + at,
                found + row * found_step,
                scores,
                self._heads,
                self._group,
                self._dim,
                past.capacity * self._dim,
                past.length + 1 - first,
            )

    def _room(self, positions: int) -> int:
        """Where scores over so many positions may lie."""
        need = self._group * (positions + LANES)
        if need > len(self._scores):
            self._scores = np.empty(2 * need, np.float32)
        return self._scores.ctypes.data


@cache
def product(dtype: np.dtype[Any]) -> _Code:
    """The product with weights of this type; KernelFault where there is no machine code."""
    return function(engine(dtype), ENTRY, 3, 4)


@cache
def engine(dtype: np.dtype[Any]) -> Any:
    """The product with weights of this type, and attention beside that of float32; made at their first use in a process."""
    binding = _binding()
    name = str(binding.get_host_cpu_name())
    try:
        features = binding.get_host_cpu_features()
        rows, columns = _tile(name, features)
        _may_run_what_it_writes()
        text = code(_KINDS[dtype.name], rows, columns)
        return compiled(name, features.flatten(), text + attention() if dtype == np.float32 else text)
    except RuntimeError as error:
        raise KernelFault(f"LLVM makes no code for {name}: {' '.join(str(error).split())[:200]}") from error


def _binding() -> Any:
    try:
        return importlib.import_module("llvmlite.binding")
    except (ImportError, OSError) as error:
        raise KernelFault(f"llvmlite is not there ({error})") from error


def _tile(processor: str, features: Any) -> tuple[int, int]:
    found = next((tile for feature, tile in _TILES.items() if features.get(feature)), None)
    if found is None:
        raise KernelFault(f"the processor ({processor}) does not multiply and add in one")
    return found


def _may_run_what_it_writes() -> None:
    """LLVM ends the process where the system forbids that, so it is asked for before."""
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except OSError as error:
        raise KernelFault(f"this system runs no code that a process writes ({error.strerror})") from error


def compiled(processor: str, features: str, text: str) -> Any:
    """LLVM's engine for ``text``, on a processor of this name with these features; RuntimeError says what it does not take."""
    binding = _binding()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple().create_target_machine(cpu=processor, features=features, opt=3)
    module = binding.parse_assembly(text)
    module.verify()
    passes = binding.create_pass_builder(target, binding.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    made = binding.create_mcjit_compiler(module, target)
    made.finalize_object()
    return made


def function(engine: Any, name: str, places: int, counts: int) -> _Code:
    """A function of an engine's, which takes so many addresses and then so many counts."""
    kinds = *[ctypes.c_void_p] * places, *[ctypes.c_int64] * counts
    found: Any = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(name))
    found.engine = engine  # the code goes when it goes
    made: _Code = found
    return made
