"""Architectures that the numpy decoder does not know, through transformers where the serving environment has it.

torch and transformers are imported by name, when used: the serving environment need not hold them, nor does forge.
"""

import copy
import importlib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from .architectures import objection, section
from .arrays import Array, Floats, Ints
from .decoder import Memory
from .faults import CheckpointFault


class _Tensor(Protocol):
    def numpy(self) -> Array: ...


class _Torch(Protocol):
    def from_numpy(self, array: Ints) -> _Tensor: ...
    def inference_mode(self) -> AbstractContextManager[object]: ...


class _Output(Protocol):
    logits: Sequence[_Tensor]


class _Model(Protocol):
    def __call__(self, *, input_ids: _Tensor, use_cache: bool, **cache: object) -> _Output: ...
    def forward(self, *args: object) -> _Output: ...
    def float(self) -> "_Model": ...
    def eval(self) -> "_Model": ...


class _Auto(Protocol):
    def from_pretrained(self, folder: str) -> _Model: ...


class Past:
    """The memory of one sequence: transformers' own cache object."""

    def __init__(self, cache: object, length: int) -> None:
        self.cache, self.length = cache, length

    def fork(self) -> "Past":
        return Past(copy.deepcopy(self.cache), self.length)


class TransformersDecoder:
    """See Decoder. Each sequence is stepped by itself, so that its numbers do not depend on its company."""

    def __init__(self, folder: Path, config: Mapping[str, object]) -> None:
        problem = objection(config) or "this checkpoint"
        try:
            self._torch = cast("_Torch", importlib.import_module("torch"))
            auto = cast("_Auto", importlib.import_module("transformers").AutoModelForCausalLM)
        except ImportError as error:
            raise CheckpointFault(
                f"the twin's own decoder does not know {problem}, and {error.name} is not installed in the serving "
                'environment: add runtime.packages = ["torch", "transformers"] to the recipe'
            ) from error
        try:
            self._model = auto.from_pretrained(str(folder)).float().eval()
        except (OSError, ValueError) as error:
            raise CheckpointFault(f"transformers cannot run {problem} as a decoder: {error}") from error
        # transformers 5.24 calls cache what was past_key_values before; a model's own code may have either.
        self._cache = "cache" if "cache" in inspect.signature(self._model.forward).parameters else "past_key_values"
        text = section(config, "text_config") or config
        self.vocabulary = _count(text, "vocab_size")
        self.positions = _count(text, "max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")

    def start(self) -> Memory:
        return Past(None, 0)

    def prompt(self, memory: Memory, tokens: Ints, *, every: bool = False) -> Floats:
        if not isinstance(memory, Past):
            raise TypeError(f"a transformers decoder's memory is a Past, not {type(memory).__name__}")
        with self._torch.inference_mode():
            ids = self._torch.from_numpy(tokens[None, :].astype(np.int64))
            out = self._model(input_ids=ids, use_cache=True, **{self._cache: memory.cache})
            logits = out.logits[0].numpy().astype(np.float32, copy=False)
        memory.cache = getattr(out, self._cache)
        memory.length += len(tokens)
        return logits if every else logits[-1:]

    def step(self, memories: Sequence[Memory], tokens: Sequence[int]) -> Floats:
        pairs = zip(memories, tokens, strict=True)
        return np.concatenate([self.prompt(memory, np.array([token])) for memory, token in pairs])


def _count(config: Mapping[str, object], *names: str) -> int:
    found = next((config[name] for name in names if isinstance(config.get(name), int)), None)
    if not isinstance(found, int):
        raise CheckpointFault(f"config.json states none of {', '.join(names)}")
    return found
