"""Answers that do not stream: the rows of a batch, joined to one response. Stands beside tensorrt_llm_bls's model.py, which
imports it."""

# Triton puts its classes into triton_python_backend_utils after this module was imported: annotations must wait.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import triton_python_backend_utils as pb_utils

LOG_PROBS = ("cum_log_probs", "output_log_probs")


@dataclass(slots=True)
class Whole:
    """One row's answer when it does not stream: a text and log probs for each of its sequences."""

    texts: list[str] = field(default_factory=list[str])
    sums: list[float] = field(default_factory=list[float])
    log_probs: list[list[float]] = field(default_factory=list[list[float]])
    tops: list[str] = field(default_factory=list[str])
    counts: dict[str, int] = field(default_factory=dict[str, int])


def joined(rows: Sequence[Whole]) -> list[pb_utils.Tensor]:
    """One answer of all rows; short rows are filled up with empty texts, sums of 0, and log probs of -1 as TensorRT-LLM's."""
    most = max(len(row.texts) for row in rows)
    tensors = [text_tensor([row.texts + [""] * (most - len(row.texts)) for row in rows])]
    if all(row.tops for row in rows):
        tensors.append(text_tensor([row.tops + ["null"] * (most - len(row.tops)) for row in rows], "logprobs"))
    if all(row.sums for row in rows):
        longest = max(len(each) for row in rows for each in row.log_probs)
        sums = [row.sums + [0.0] * (most - len(row.sums)) for row in rows]
        logs = [[(each + [-1.0] * longest)[:longest] for each in (row.log_probs + [[]] * most)[:most]] for row in rows]
        tensors += [
            pb_utils.Tensor(name, np.array(held, np.float32)) for name, held in zip(LOG_PROBS, (sums, logs), strict=True)
        ]
    counts = {name: np.array([[row.counts[name]] for row in rows], np.int32) for name in rows[0].counts}
    return [*tensors, *(pb_utils.Tensor(name, array) for name, array in counts.items())]


def text_tensor(rows: list[list[str]], name: str = "text_output") -> pb_utils.Tensor:
    return pb_utils.Tensor(name, np.array([[text.encode() for text in row] for row in rows], dtype=object))
