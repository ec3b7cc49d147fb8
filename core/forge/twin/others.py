"""Architectures that the numpy decoder does not know, through transformers where the serving environment has it.

Every token comes out of transformers' own `generate`, one call a token: which cache a model wants, when it throws that away
(a Phi-3 that outgrows its short rotary factors reads everything again) and what an encoder is asked is known there.
torch and transformers are imported by name, when used: the serving environment need not hold them, nor does forge.
"""

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from .architectures import objection, section
from .arrays import Array, Floats, Ints
from .decoder import Memory
from .faults import CheckpointFault

_CACHES = ("cache", "past_key_values")
"""What models call their cache: the first since transformers 5.24; a model's own code may have either."""
_BOUNDLESS = 1 << 20
"""Positions of a model that counts them from the token that looks: as many as anybody could wait for."""


class _Tensor(Protocol):
    def numpy(self) -> Array: ...


class _Torch(Protocol):
    def from_numpy(self, array: Ints) -> _Tensor: ...
    def inference_mode(self) -> AbstractContextManager[object]: ...
    def ones_like(self, other: _Tensor) -> _Tensor: ...


class _Output(Protocol):
    logits: Sequence[_Tensor]


class _Model(Protocol):
    config: object
    generation_config: object

    def __call__(self, **inputs: object) -> _Output: ...
    def forward(self, *args: object) -> _Output: ...
    def generate(self, **inputs: object) -> _Output: ...
    def get_encoder(self) -> Callable[..., object]: ...
    def float(self) -> "_Model": ...
    def eval(self) -> "_Model": ...


class _Auto(Protocol):
    def from_pretrained(self, folder: str) -> _Model: ...


class Past:
    """The memory of one sequence: what its decoder has read and said, transformers' own cache of that, and what an encoder made
    of the prompt."""

    def __init__(self, tokens: Sequence[int], cache: object = None, encoded: object = None) -> None:
        self.tokens, self.cache, self.encoded = list(tokens), cache, encoded

    @property
    def length(self) -> int:
        return len(self.tokens)

    def fork(self) -> "Past":
        return Past(self.tokens, copy.deepcopy(self.cache), self.encoded)


class TransformersDecoder:
    """See Decoder. Each sequence is stepped by itself, so that its numbers do not depend on its company; a prompt is read at
    once, because some models read a whole one otherwise than its pieces."""

    piece = None
    says = "torch"

    def __init__(self, folder: Path, config: Mapping[str, object]) -> None:
        problem = objection(config) or "this checkpoint"
        self._encodes = bool(config.get("is_encoder_decoder"))
        try:
            self._torch = cast("_Torch", importlib.import_module("torch"))
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise CheckpointFault(
                f"the twin's own decoder does not know {problem}, and {error.name} is not installed in the serving "
                'environment: add runtime.packages = ["torch", "transformers"] to the recipe'
            ) from error
        kind = "AutoModelForSeq2SeqLM" if self._encodes else "AutoModelForCausalLM"
        try:
            self._model = cast("_Auto", getattr(transformers, kind)).from_pretrained(str(folder)).float().eval()
        except (OSError, ValueError) as error:
            what = "an encoder and a decoder" if self._encodes else "a decoder"
            raise CheckpointFault(f"transformers cannot run {problem} as {what}: {error}") from error
        known = inspect.signature(self._model.forward).parameters
        self._cache = next((name for name in _CACHES if name in known), "")
        self.begins = _begins(self._model) if self._encodes else None
        # A checkpoint's own habits (a penalty, a forced first token) are not asked for: greedy is the likeliest token.
        self._terms = transformers.GenerationConfig(
            max_new_tokens=1,
            do_sample=False,
            use_cache=bool(self._cache),
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=0,
            decoder_start_token_id=self.begins,
        )
        self._model.generation_config = self._terms
        text = section(config, "text_config") or config
        self.vocabulary = _count(text, "vocab_size")
        self.positions = _positions(text)

    def start(self) -> Memory:
        return Past(())

    def prompt(self, memory: Memory, tokens: Ints, *, every: bool = False) -> Floats:
        past = _past(memory)
        with self._torch.inference_mode():
            if self.begins is not None:
                ids = self._ids(tokens.tolist())
                past.encoded = self._model.get_encoder()(input_ids=ids, attention_mask=self._torch.ones_like(ids))
                past.tokens = [self.begins]
                return self._next(past)
            past.tokens += tokens.tolist()
            if every:
                everything = self._model(input_ids=self._ids(past.tokens), use_cache=False).logits[0]
                self._next(past)
                return _floats(everything)[-len(tokens) :]
            return self._next(past)

    def prompts(self, memories: Sequence[Memory], pieces: Sequence[Ints], every: Sequence[bool]) -> list[Floats]:
        each = zip(memories, pieces, every, strict=True)
        return [self.prompt(memory, piece, every=whole) for memory, piece, whole in each]

    def step(self, memories: Sequence[Memory], tokens: Sequence[int]) -> Floats:
        return np.concatenate([self._after(_past(memory), token) for memory, token in zip(memories, tokens, strict=True)])

    def _after(self, past: Past, token: int) -> Floats:
        past.tokens.append(token)
        with self._torch.inference_mode():
            return self._next(past)

    def _next(self, past: Past) -> Floats:
        """Logits [1, vocabulary] after all its tokens, of which the cache holds all but the new ones."""
        ids = self._ids(past.tokens)
        seen = self._torch.ones_like(ids)
        given: dict[str, object] = {"generation_config": self._terms}
        if past.encoded is None:
            given |= {"input_ids": ids, "attention_mask": seen}
        else:
            given |= {"encoder_outputs": past.encoded, "decoder_input_ids": ids, "decoder_attention_mask": seen}
        if past.cache is not None:
            given[self._cache] = past.cache
        out = self._model.generate(**given)
        past.cache = getattr(out, self._cache, None) if self._cache else None
        return _floats(out.logits[0])

    def _ids(self, tokens: Sequence[int]) -> _Tensor:
        return self._torch.from_numpy(np.array([tokens], np.int64))


def _floats(tensor: _Tensor) -> Floats:
    return tensor.numpy().astype(np.float32, copy=False)


def _past(memory: Memory) -> Past:
    if not isinstance(memory, Past):
        raise TypeError(f"a transformers decoder's memory is a Past, not {type(memory).__name__}")
    return memory


def _begins(model: _Model) -> int:
    """The token that the decoder of an encoder-decoder begins with."""
    for place in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            found: object = getattr(place, name, None)
            if isinstance(found, int):
                return found
    raise CheckpointFault("config.json states no decoder_start_token_id: nobody knows how an answer begins")


def _positions(config: Mapping[str, object]) -> int:
    if "relative_attention_num_buckets" in config:  # T5: no position has a number, n_positions is what it was trained on
        return _BOUNDLESS
    return _count(config, "max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")


def _count(config: Mapping[str, object], *names: str) -> int:
    found = next((config[name] for name in names if isinstance(config.get(name), int)), None)
    if not isinstance(found, int):
        raise CheckpointFault(f"config.json states none of {', '.join(names)}")
    return found
