"""A decoder of Llama-like and Gemma-like checkpoints in numpy.

Two ways through the same layers: ``prompts`` takes a piece of each of some sequences, ``step`` one token of each of many. What
a sequence computes depends on that sequence alone, to the bit, so that company never changes a text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .arrays import Array, Floats, Ints
from .checkpoint import Weights, widened
from .faults import CheckpointFault
from .kernel import Attention, Past
from .kernel_code import LANES
from .narrow import Narrow, as_stored
from .parts import Norm, Turns, gelu, silu, soften, softmax, turn
from .projection import Projection, Projector, Weight, projector as chosen
from .shape import Rotary, Shape

CHUNK = 128
"""Tokens of a prompt taken at once: long enough to be quick, short enough not to starve the others."""


class Memory(Protocol):
    """What a decoder remembers of one sequence."""

    @property
    def length(self) -> int: ...

    def fork(self) -> "Memory":
        """A second memory of the same past, to go on by another way."""
        ...


class Decoder(Protocol):
    """Turns tokens to logits; what the batching loop drives."""

    vocabulary: int
    positions: int
    says: str
    """By what it multiplies, for the log."""

    @property
    def piece(self) -> int | None:
        """Tokens of a prompt that are taken at once; None: all of them, for the numbers depend on it."""
        ...

    @property
    def begins(self) -> int | None:
        """The token that an answer begins with where an encoder reads the prompt; None where one decoder reads and goes on."""
        ...

    def start(self) -> Memory:
        """The memory of a sequence that has not begun."""
        ...

    def prompt(self, memory: Memory, tokens: Ints, *, every: bool = False) -> Floats:
        """Takes in tokens of one sequence; logits [1, vocabulary] after the last, or [n, vocabulary] after every one."""
        ...

    def prompts(self, memories: Sequence[Memory], pieces: Sequence[Ints], every: Sequence[bool]) -> list[Floats]:
        """``prompt`` for several sequences in one go; where ``piece`` is a number, none is taken in when it fails."""
        ...

    def step(self, memories: Sequence[Memory], tokens: Sequence[int]) -> Floats:
        """One more token for each of n sequences -> logits [n, vocabulary]."""
        ...


class Cache:
    """Keys and values of one sequence [layers, kv heads, capacity, head_dim]; grows by doubling."""

    def __init__(self, keys: Floats, values: Floats, length: int) -> None:
        self.keys, self.values, self.length = keys, values, length

    def reserve(self, more: int) -> None:
        """Makes room for ``more`` further positions."""
        layers, heads, capacity, dim = self.keys.shape
        need = self.length + more
        if need > capacity:
            grown = (layers, heads, max(need, 2 * capacity), dim)
            self.keys, self.values = self._copy(self.keys, grown), self._copy(self.values, grown)

    def fork(self) -> "Cache":
        return Cache(self._copy(self.keys, self.keys.shape), self._copy(self.values, self.values.shape), self.length)

    def _copy(self, source: Floats, shape: tuple[int, ...]) -> Floats:
        copy = np.empty(shape, np.float32)
        copy[:, :, : self.length] = source[:, :, : self.length]
        return copy


@dataclass(frozen=True, slots=True)
class Block:
    """One layer's weights. ``heads_norm`` normalises queries and keys per head; the after-norms are Gemma 2's and 3's."""

    before: Norm
    attention: Projection
    """Queries, keys and values, one after the other."""
    heads_norm: Norm | None
    output: Projection
    after: Norm | None
    before_mlp: Norm
    gate_up: Projection
    down: Projection
    after_mlp: Norm | None


Attend = Callable[[int, Floats, Floats], Floats]


class NumpyDecoder:
    """See Decoder; its memories are Caches."""

    piece = CHUNK
    begins = None

    def __init__(self, shape: Shape, weights: Weights, projector: Projector | None = None, narrow: Narrow = as_stored) -> None:
        """``narrow`` rounds all matrices but the embedding, of which few rows are looked up."""
        projector = projector or chosen()
        reader = _Reader(shape, weights, projector, narrow)
        self.says = projector.says
        self.vocabulary, self.positions, self._shape = shape.vocabulary, shape.positions, shape
        self._embedding = reader.stored("embed_tokens.weight")
        self._norm = reader.norm("norm")
        self._head = projector(reader.narrowed(reader.head(self._embedding)))
        self._attention = _attention(shape) if projector.compiled else None
        self._blocks = [reader.block(index) for index in range(len(shape.layers))]
        self._turns: dict[Rotary, Turns] = {
            rotary: Turns(rotary, shape.head_dim) for rotary in {layer.rotary for layer in shape.layers}
        }

    def start(self) -> Cache:
        shape = self._shape
        room = (len(shape.layers), shape.kv_heads, 2 * CHUNK, shape.head_dim)
        return Cache(np.empty(room, np.float32), np.empty(room, np.float32), 0)

    def prompt(self, memory: Memory, tokens: Ints, *, every: bool = False) -> Floats:
        return self.prompts([memory], [tokens], [every])[0]

    def prompts(self, memories: Sequence[Memory], pieces: Sequence[Ints], every: Sequence[bool]) -> list[Floats]:
        caches, counts = [_cache(memory) for memory in memories], [len(piece) for piece in pieces]
        for cache, count in zip(caches, counts, strict=True):
            cache.reserve(count)
        positions = [np.arange(cache.length, cache.length + count) for cache, count in zip(caches, counts, strict=True)]
        ends = np.cumsum(counts)
        spans = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]

        def attend(layer: int, heads: Floats, values: Floats) -> Floats:
            parts = zip(caches, spans, strict=True)
            return np.concatenate([self._attend(layer, cache, heads[span], values[span]) for cache, span in parts])

        x = self._run(self._embed(np.concatenate(pieces)), np.concatenate(positions), counts, attend)
        for cache, count in zip(caches, counts, strict=True):
            cache.length += count
        wanted = [x[span] if whole else x[span][-1:] for span, whole in zip(spans, every, strict=True)]
        rows = [len(part) for part in wanted]
        return np.split(self._logits(np.concatenate(wanted), rows), np.cumsum(rows)[:-1])

    def step(self, memories: Sequence[Memory], tokens: Sequence[int]) -> Floats:
        caches = [_cache(memory) for memory in memories]
        for cache in caches:
            cache.reserve(1)
        positions, single = np.array([cache.length for cache in caches]), [1] * len(caches)
        pasts = [Past.of(cache.keys, cache.values, cache.length) for cache in caches]

        def attend(layer: int, heads: Floats, values: Floats) -> Floats:
            out = np.empty((len(caches), self._shape.heads * self._shape.head_dim), np.float32)
            if self._attention is not None:
                self._attention(layer, self._shape.layers[layer].window, heads, values, pasts, out)
                return out
            for row, cache in enumerate(caches):
                out[row] = self._attend_one(layer, cache, heads[row], values[row])
            return out

        x = self._run(self._embed(np.array(tokens)), positions, single, attend)
        for cache in caches:
            cache.length += 1
        return self._logits(x, single)

    def _embed(self, tokens: Ints) -> Floats:
        x = widened(self._embedding[tokens])
        return x if self._shape.embedding_scale == 1.0 else x * np.float32(self._shape.embedding_scale)

    def _logits(self, x: Floats, rows: Sequence[int]) -> Floats:
        return soften(self._head(self._norm(x), rows), self._shape.logit_cap)

    def _run(self, x: Floats, positions: Ints, rows: Sequence[int], attend: Attend) -> Floats:
        """Rows [n, hidden], so many of each sequence, through every layer. Queries reach ``attend`` turned and scaled, keys
        turned behind them."""
        shape, half = self._shape, self._shape.head_dim // 2
        act = gelu if shape.gelu else silu
        angles = {rotary: turns.at(positions) for rotary, turns in self._turns.items()}
        with np.errstate(over="ignore", under="ignore"):
            for index, block in enumerate(self._blocks):
                all_heads = block.attention(block.before(x), rows).reshape(len(x), -1, shape.head_dim)
                heads, values = all_heads[:, : -shape.kv_heads], all_heads[:, -shape.kv_heads :]
                if block.heads_norm is not None:
                    heads = block.heads_norm(heads)
                heads = turn(heads.reshape(len(x), -1, 2, half), *angles[shape.layers[index].rotary])
                heads = heads.reshape(len(x), -1, shape.head_dim)
                heads[:, : shape.heads] *= np.float32(shape.query_scale)
                h = block.output(attend(index, heads, values), rows)
                x = x + (h if block.after is None else block.after(h))
                both = block.gate_up(block.before_mlp(x), rows)
                gated = act(both[:, : both.shape[1] // 2])
                gated *= both[:, both.shape[1] // 2 :]
                h = block.down(gated, rows)
                x += h if block.after_mlp is None else block.after_mlp(h)
        return x

    def _attend_one(self, layer: int, cache: Cache, heads: Floats, values: Floats) -> Floats:
        """One new position of one sequence: heads [heads + kv heads, dim], values [kv heads, dim] -> [heads * dim]."""
        shape, here = self._shape, cache.length
        keys, past = cache.keys[layer], cache.values[layer]
        keys[:, here] = heads[shape.heads :]
        past[:, here] = values
        window = shape.layers[layer].window
        first = max(0, here + 1 - window) if window else 0
        queries = heads[: shape.heads].reshape(shape.kv_heads, -1, shape.head_dim)
        scores = np.matmul(queries, keys[:, first : here + 1].transpose(0, 2, 1))
        scores = softmax(soften(scores, shape.score_cap))
        mixed: Floats = np.matmul(scores, past[:, first : here + 1])
        mixed /= np.add.reduce(scores, axis=-1, keepdims=True)
        return mixed.reshape(-1)

    def _attend(self, layer: int, cache: Cache, heads: Floats, values: Floats) -> Floats:
        """Several new positions of one sequence, each seeing those up to itself -> [n, heads * dim]."""
        shape, here, count = self._shape, cache.length, len(heads)
        end = here + count
        keys, past = cache.keys[layer], cache.values[layer]
        keys[:, here:end] = heads[:, shape.heads :].transpose(1, 0, 2)
        past[:, here:end] = values.transpose(1, 0, 2)
        window = shape.layers[layer].window
        first = max(0, here + 1 - window) if window else 0
        queries = heads[:, : shape.heads].reshape(count, shape.kv_heads, -1, shape.head_dim).transpose(1, 2, 0, 3)
        flat = queries.reshape(shape.kv_heads, -1, shape.head_dim)
        scores = soften(np.matmul(flat, keys[:, first:end].transpose(0, 2, 1)), shape.score_cap)
        scores = scores.reshape(shape.kv_heads, -1, count, end - first)
        scores += _mask(np.arange(here, end), np.arange(first, end), window)
        scores = softmax(scores).reshape(shape.kv_heads, -1, end - first)
        mixed: Floats = np.matmul(scores, past[:, first:end])
        mixed /= np.add.reduce(scores, axis=-1, keepdims=True)
        return mixed.reshape(shape.heads, count, shape.head_dim).transpose(1, 0, 2).reshape(count, -1)


def _attention(shape: Shape) -> Attention | None:
    """Machine code for a step's attention, unless scores are capped or heads fill no lanes."""
    if shape.score_cap or shape.head_dim % LANES:
        return None
    return Attention(shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)


def _mask(rows: Ints, columns: Ints, window: int) -> Floats:
    """0 where the query at a row's position may see the key at a column's, minus infinity elsewhere."""
    back = rows[:, None] - columns[None, :]
    hidden = back < 0
    if window:
        hidden |= back >= window
    return np.where(hidden, np.float32(-np.inf), np.float32(0.0))


def _cache(memory: Memory) -> Cache:
    if not isinstance(memory, Cache):
        raise TypeError(f"a numpy decoder's memory is a Cache, not {type(memory).__name__}")
    return memory


class _Reader:
    """Takes a checkpoint's tensors by the names that transformers gives them."""

    def __init__(self, shape: Shape, weights: Weights, projector: Projector, narrow: Narrow) -> None:
        self._shape, self._weights, self._projector, self._narrow = shape, weights, projector, narrow
        found = (prefix for prefix in shape.prefix.split() if f"{prefix}embed_tokens.weight" in weights)
        self._prefix = next(found, "model.")

    def stored(self, name: str) -> Array:
        try:
            return self._weights.stored(self._prefix + name)
        except KeyError:
            raise CheckpointFault(f"the checkpoint has no tensor {self._prefix}{name}") from None

    def vector(self, name: str) -> Floats:
        return widened(self.stored(name))

    def head(self, embedding: Array) -> Array:
        """The output matrix: the embedding itself where they are tied, or where nothing is said and no other was stored."""
        names = ("lm_head.weight", f"{self._prefix.removesuffix('model.')}lm_head.weight")
        stored = next((name for name in names if name in self._weights), None)
        if stored is None and self._shape.tied is False:
            raise CheckpointFault("config.json says tie_word_embeddings = false, and the checkpoint has no lm_head.weight")
        return embedding if self._shape.tied or stored is None else self._weights.stored(stored)

    def norm(self, name: str) -> Norm:
        return Norm(self.vector(f"{name}.weight"), self._shape.norm_offset, self._shape.epsilon)

    def projection(self, *names: str) -> Projection:
        return self._projector(*(self._weight(name) for name in names))

    def _weight(self, name: str) -> Weight:
        biased = name.rpartition(".")[2] in self._shape.biased and f"{self._prefix}{name}.bias" in self._weights
        return self.narrowed(self.stored(f"{name}.weight"), self.vector(f"{name}.bias") if biased else None)

    def narrowed(self, stored: Array, bias: Floats | None = None) -> Weight:
        weight, scale = self._narrow(stored)
        return Weight(weight, bias, scale)

    def heads_norm(self, at: str) -> Norm | None:
        shape = self._shape
        if not shape.heads_norm:
            return None
        query = np.tile(self.vector(f"{at}q_norm.weight"), (shape.heads, 1))
        key = np.tile(self.vector(f"{at}k_norm.weight"), (shape.kv_heads, 1))
        return Norm(np.concatenate((query, key)), shape.norm_offset, shape.epsilon)

    def block(self, index: int) -> Block:
        at, sandwich = f"layers.{index}.", self._shape.sandwich
        attention, mlp = f"{at}self_attn.", f"{at}mlp."
        return Block(
            before=self.norm(f"{at}input_layernorm"),
            attention=self.projection(*(f"{attention}{name}_proj" for name in "qkv")),
            heads_norm=self.heads_norm(attention),
            output=self.projection(f"{attention}o_proj"),
            after=self.norm(f"{at}post_attention_layernorm") if sandwich else None,
            before_mlp=self.norm(f"{at}{'pre_feedforward' if sandwich else 'post_attention'}_layernorm"),
            gate_up=self.projection(f"{mlp}gate_proj", f"{mlp}up_proj"),
            down=self.projection(f"{mlp}down_proj"),
            after_mlp=self.norm(f"{at}post_feedforward_layernorm") if sandwich else None,
        )
