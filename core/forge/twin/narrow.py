"""Weights rounded to fewer bits while a checkpoint is opened, where a recipe asks for it: fewer bytes for each token."""

from collections.abc import Callable, Mapping

import numpy as np

from .arrays import Array, Floats
from .checkpoint import widened
from .faults import CheckpointFault

Narrow = Callable[[Array], tuple[Array, Floats | None]]
"""Weights [outputs, inputs] as they are stored -> as they are multiplied, and what each row's sums are then multiplied with."""
_STEPS = np.float32(127)


def as_stored(weight: Array) -> tuple[Array, Floats | None]:
    return weight, None


def bfloat16(weight: Array) -> tuple[Array, Floats | None]:
    """The nearest number of 8 bits of mantissa, the even one of two that are as near; as uint16."""
    if weight.dtype == np.uint16:
        return weight, None
    wide = widened(weight)
    bits = wide.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded >>= np.uint32(16)
    return np.where(np.isnan(wide), np.uint16(0x7FC0), rounded.astype(np.uint16)), None


def int8(weight: Array) -> tuple[Array, Floats | None]:
    """The nearest of 255 steps, of which each row has its own: the 127th part of its largest weight.

    CheckpointFault where a weight is no finite number: a row would be whatever the processor makes of that.
    """
    wide = widened(weight)
    step = np.abs(wide).max(axis=1) / _STEPS
    if not np.isfinite(step).all():
        raise CheckpointFault("weights that are no finite numbers cannot be rounded to int8: the checkpoint is damaged")
    step[step == 0] = 1
    return np.rint(wide / step[:, None]).astype(np.int8), step


NARROW: Mapping[str, Narrow] = {"": as_stored, "bfloat16": bfloat16, "int8": int8}
"""By what a recipe says."""
