"""The smallest changes that make a recipe fit, the least intrusive first, each with the figures that it leads to. Pure.

Every change is tried as a recipe: what is said of it is what the same arithmetic says of that recipe.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

from msgspec import Struct

from forge.fit.memory import CALIBRATED, tokens_at_once
from forge.fit.verdict import (
    BFLOAT16,
    CAPABILITIES,
    Judgement,
    Load,
    Verdict,
    bench,
    judge,
    judge_on_cpu,
    judge_twin,
    objections,
    refused,
)
from forge.fit.vllm import UTILIZATION, without_gpu
from forge.fit.weights import terms
from forge.schema.values import Gpu, Recipe, RuntimeKind
from forge.schema.wheels import named

STEP = 64
"""Sequence lengths are tried in multiples of a cache block."""
FRACTIONS = (0.9, 0.95)
PARALLEL = (2, 4, 8)
MOST_OF_A_CARD = 97
"""Hundredths of a card that vLLM is told to take at most: its libraries allocate beside what it counts."""
_HALF = ("convert.dtype", "float16")
ORDER = (Verdict.NO, Verdict.LIMITED, Verdict.FITS)

Pair = tuple[str, object]
"""A recipe's key, and the value to give it."""
Pairs = tuple[Pair, ...]


class Change(Struct, frozen=True):
    """A recipe's keys with the values to give them, and what then holds. Bytes are of the fullest GPU."""

    set: tuple[tuple[str, str], ...]
    why: str
    verdict: Verdict
    weights: int
    room: int
    tokens: int
    sequences: int


class Easing(ABC):
    """Looks for changes to one load in one place."""

    def __init__(self, load: Load) -> None:
        self.load, self.needed = load, bench(load)
        now = self.judged(load.recipe).verdict
        self.done = now is Verdict.FITS
        self._target = Verdict.LIMITED if now is Verdict.NO else Verdict.FITS
        self._first: Pairs = ()

    @abstractmethod
    def judged(self, recipe: Recipe) -> Judgement: ...

    @abstractmethod
    def changes(self) -> tuple[Change, ...]:
        """None where it fits whole; otherwise what alone reaches the next better verdict, or what does together."""

    def reaches(self, recipe: Recipe) -> bool:
        return ORDER.index(self.judged(recipe).verdict) >= ORDER.index(self._target)

    def tried(self, recipe: Recipe, why: str, *pairs: Pair) -> Iterator[Change]:
        """What comes of the recipe with these keys set, where that reaches the target."""
        changed = recipe.having(*pairs)
        if self.reaches(changed):
            yield self._change(changed, why, *pairs)

    def largest(self, recipe: Recipe, values: Sequence[int], made: Callable[[int], Pairs]) -> Pairs:
        """The keys of the largest of ascending ``values`` that reach the target: what fits stays so for smaller ones. None
        where no value does."""
        low, high = 0, len(values)
        while low < high:
            middle = (low + high) // 2
            if self.reaches(recipe.having(*made(values[middle]))):
                low = middle + 1
            else:
                high = middle
        return made(values[low - 1]) if low else ()

    def _change(self, recipe: Recipe, why: str, *pairs: Pair) -> Change:
        judged, need = self.judged(recipe), self.needed(recipe)
        stated = tuple((key, "true" if value is True else str(value)) for key, value in (*self._first, *pairs))
        own = [name for key, _ in stated if (name := OWN.get(recipe.runtime.kind, {}).get(key))]
        why += f" ({', '.join(own)})" if own else ""
        return Change(stated, why, judged.verdict, need.weights.heaviest, judged.room, judged.tokens, judged.sequences)


class OnCard(Easing):
    """The same on one kind of GPU, of which there are ``count`` (0: as many as needed)."""

    def __init__(self, load: Load, gpu: Gpu, count: int = 0) -> None:
        self.gpu, self.count = gpu, count
        super().__init__(load)

    def changes(self) -> tuple[Change, ...]:
        if self.done:
            return ()
        recipe = self.load.recipe
        if terms(recipe, self.load.shape).dtype == "bfloat16" and not self.gpu.at_least(BFLOAT16):
            recipe = recipe.having(_HALF)
            self._first = (_HALF,)
            if self.reaches(recipe):
                return (self._change(recipe, "this GPU computes in float16"),)
        alone = [found for look in LOOKS[recipe.runtime.kind] for found in look(self, recipe)]
        if not alone and recipe.runtime.kind is not RuntimeKind.VLLM:
            alone += _together(self, recipe, _COARSEST[recipe.runtime.kind])
        return (*alone, *_parallel(self, recipe))

    def judged(self, recipe: Recipe) -> Judgement:
        judged = judge(recipe, self.needed(recipe), self.gpu)
        return refused(judged) if objections(recipe, terms(recipe, self.load.shape), self.gpu) else judged


class InMemory(Easing):
    """The same for what this machine's own memory serves, of which ``free`` bytes are free: a twin, and vLLM on a CPU."""

    def __init__(self, load: Load, free: int) -> None:
        self.free = free
        super().__init__(load)

    def changes(self) -> tuple[Change, ...]:
        if self.done:
            return ()
        recipe, twin = self.load.recipe, self.load.recipe.runtime.kind is RuntimeKind.TWIN
        alone = [found for look in (TWIN_LOOKS if twin else CPU_LOOKS) for found in look(self, recipe)]
        coarsest = _COARSEST[recipe.runtime.kind] if twin and _own_decoder(recipe) else ()
        return tuple(alone or _together(self, recipe, coarsest))

    def judged(self, recipe: Recipe) -> Judgement:
        if recipe.runtime.kind is RuntimeKind.TWIN:
            return judge_twin(self.needed(recipe), self.free)
        return judge_on_cpu(recipe, without_gpu(self.needed(recipe)), self.free)


Look = Callable[[OnCard, Recipe], Iterator[Change]]
HostLook = Callable[[InMemory, Recipe], Iterator[Change]]


def _first(tried: Iterable[Iterator[Change]]) -> Iterator[Change]:
    """What the first that reaches the target comes to."""
    return islice(chain.from_iterable(tried), 1)


def _more_cache(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    why, key = "more of what is free goes to the cache", "serve.kv_cache_free_gpu_mem_fraction"
    yield from _first(easing.tried(recipe, why, (key, each)) for each in FRACTIONS if each > recipe.serve.fraction)


def _halved(easing: OnCard, recipe: Recipe) -> Iterator[Change]:
    if recipe.convert.dtype == "float32":
        half = "bfloat16" if easing.gpu.at_least(BFLOAT16) else "float16"
        yield from easing.tried(recipe, f"weights and cache in {half} are half as large", ("convert.dtype", half))


def _windows(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    shape = easing.load.shape
    if not shape.slides or terms(recipe, shape).windowed:
        return
    words = _pattern([window or recipe.build.max_seq_len for _, window in shape.windows])
    pair = ("serve.parameters.tensorrt_llm.max_attention_window_size", words)
    yield from easing.tried(recipe, "sliding layers then keep no more than they look back on", pair)


def _fewer_tokens(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    """A prompt goes through in one pass, so this must not fall below the longest."""
    least, now = recipe.build.max_input_len, tokens_at_once(recipe)
    values = [value for value in range(-(-least // STEP) * STEP, now, STEP) if value >= least]
    if pairs := easing.largest(recipe, values, lambda value: (("build.max_num_tokens", value),)):
        yield from easing.tried(recipe, "activations shrink; prompts take turns", *pairs)


def _fewer_slots(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    values = range(1, recipe.build.max_batch_size)
    if pairs := easing.largest(recipe, values, lambda value: (("build.max_batch_size", value),)):
        yield from easing.tried(recipe, "fewer requests at a time", *pairs)


def _narrow_llmapi_cache(easing: OnCard, recipe: Recipe) -> Iterator[Change]:
    if recipe.convert.quantization == "none" and easing.gpu.at_least(CAPABILITIES["fp8_kv"]):
        yield from easing.tried(recipe, "a cache in fp8 is half as large", ("convert.quantization", "fp8_kv"))


def _narrow_cache(easing: OnCard, recipe: Recipe) -> Iterator[Change]:
    """A narrow cache is a quantization of its own, or a flag beside another one."""
    if terms(recipe, easing.load.shape).cache_width == 1:
        return
    words = "fp8" if easing.gpu.at_least(CAPABILITIES["fp8_kv"]) else "int8"
    pair: Pair = ("convert.args.int8_kv_cache", True)
    if recipe.convert.quantization == "none":
        pair = ("convert.quantization", f"{words}_kv")
    elif recipe.convert.quantization in CALIBRATED:
        pair = ("convert.args.kv_cache_dtype", words)
    yield from easing.tried(recipe, f"a cache in {words} is half as large", pair)


def _shorter(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    if pairs := _shortened(easing, recipe):
        yield from easing.tried(recipe, "shorter conversations", *pairs)


def _shortened(easing: Easing, recipe: Recipe) -> Pairs:
    """What sets the longest sequences that fit; an encoder's prompt takes no room in a sequence."""

    def cut(value: int) -> Pairs:
        stated, longest = ("build.max_seq_len", value), recipe.build.max_input_len
        if easing.load.shape.encoder_layers or longest < value:
            return (stated,)
        return stated, ("build.max_input_len", value - 1)

    return easing.largest(recipe, range(2 * STEP, recipe.build.max_seq_len, STEP), cut)


def _quantized(easing: OnCard, recipe: Recipe) -> Iterator[Change]:
    if recipe.convert.quantization != "none":
        return
    for quantization, why in (
        ("int8_weight_only", "weights in int8, no calibration"),
        ("fp8", "weights and products in fp8, calibrated"),
        ("int4_awq", "weights in int4, calibrated"),
        ("int4_weight_only", "weights in int4, no calibration: the coarsest"),
    ):
        pair = ("convert.quantization", quantization)
        if easing.needed(recipe.having(pair)).calibration > easing.gpu.memory * max(easing.count, 1):
            why += " partly in host memory, which is slow"  # noqa: PLW2901
        yield from easing.tried(recipe, why, pair)


def _parallel(easing: OnCard, recipe: Recipe) -> Iterator[Change]:
    heads, count, pp = easing.load.shape.heads, easing.count, recipe.convert.pp
    able = (tp for tp in PARALLEL if tp > recipe.convert.tp and heads % tp == 0 and (not count or tp * pp <= count))
    yield from _first(easing.tried(recipe, f"shared out among {tp * pp} such GPUs", ("convert.tp", tp)) for tp in able)


_LOOKS: tuple[Look, ...] = (
    _more_cache,
    _windows,
    _fewer_tokens,
    _fewer_slots,
    _narrow_cache,
    _shorter,
    _halved,
    _quantized,
)
"""From what costs nothing at all to what costs quality. Another GPU is asked for last."""


def _more_of_the_card(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    """The smallest part of the card, in hundredths, that does it."""
    more = range(int(easing.needed(recipe).utilization * 100) + 1, MOST_OF_A_CARD + 1)
    yield from _first(easing.tried(recipe, "vLLM takes more of the card", _part(hundredths)) for hundredths in more)


def _less_of_the_card(easing: OnCard, recipe: Recipe) -> Iterator[Change]:
    """Where others hold a part of what it asks for: the largest part that is free, if that does."""
    if not easing.judged(recipe).absent:
        return
    now = easing.needed(recipe).utilization
    for hundredths in range(int(now * 100), 0, -1):
        if hundredths / 100 < now and not easing.judged(recipe.having(_part(hundredths))).absent:
            yield from easing.tried(recipe, "no more than is free", _part(hundredths))
            return


def _part(hundredths: int) -> Pair:
    return f"serve.vllm.{UTILIZATION}", hundredths / 100


def _narrow_vllm_cache(easing: OnCard, recipe: Recipe) -> Iterator[Change]:
    if terms(recipe, easing.load.shape).cache_width > 1 and easing.gpu.at_least(CAPABILITIES["fp8_kv"]):
        yield from easing.tried(recipe, "a cache in fp8 is half as large", ("serve.vllm.kv_cache_dtype", "fp8"))


def _quantized_while_loading(easing: OnCard, recipe: Recipe) -> Iterator[Change]:
    quantized = "quantization" in recipe.serve.vllm or easing.load.shape.quantized
    if not quantized and easing.gpu.at_least(CAPABILITIES["fp8"]):
        pair = ("serve.vllm.quantization", "fp8")
        yield from easing.tried(recipe, "weights in fp8, made so when vLLM loads them", pair)


VLLM_LOOKS: tuple[Look, ...] = (
    _less_of_the_card,
    _more_of_the_card,
    _fewer_slots,
    _narrow_vllm_cache,
    _shorter,
    _halved,
    _quantized_while_loading,
)
"""The same order, in vLLM's own arguments."""
LOOKS: Mapping[RuntimeKind, tuple[Look, ...]] = {
    RuntimeKind.ENGINE: _LOOKS,
    RuntimeKind.VLLM: VLLM_LOOKS,
    RuntimeKind.LLMAPI: (_more_cache, _fewer_tokens, _fewer_slots, _narrow_llmapi_cache, _shorter, _halved),
}
"""LLM() quantizes no weights: it reads what was quantized before."""


def _own_decoder(recipe: Recipe) -> bool:
    """Whether the twin decodes itself: transformers rounds no weights."""
    return not any(named(package) == "transformers" for package in recipe.runtime.packages)


def _fewer_streams(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    now = recipe.serve.instances or recipe.build.max_batch_size
    if pairs := easing.largest(recipe, range(1, now), lambda value: (("serve.instances", value),)):
        yield from easing.tried(recipe, "fewer streams, each a process", *pairs)


def _rounded(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    if _own_decoder(recipe) and recipe.runtime.weights is None:
        yield from easing.tried(recipe, "matrices in half the memory", ("runtime.weights", "bfloat16"))
        yield from easing.tried(recipe, "matrices in a quarter of the memory", ("runtime.weights", "int8"))


TWIN_LOOKS: tuple[HostLook, ...] = (_fewer_streams, _fewer_slots, _shorter, _rounded)


def _other_cache(easing: InMemory, recipe: Recipe) -> Iterator[Change]:
    """The cache has a size of its own: what is free, or what all slots need where that is less."""
    need = without_gpu(easing.needed(recipe))
    value = min(need.wanted, easing.free - need.fixed.size) >> 20 << 20
    if value >= need.wanted >> 20 << 20:
        value += 1 << 20
    if value > 0:
        yield from easing.tried(recipe, "the cache gets what is free", ("serve.vllm.kv_cache_memory_bytes", value))


def _halved_on_cpu(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    if recipe.convert.dtype == "float32":
        yield from easing.tried(recipe, "weights and cache are half as large", ("convert.dtype", "bfloat16"))


CPU_LOOKS: tuple[HostLook, ...] = (_other_cache, _fewer_slots, _shorter, _halved_on_cpu)
_COARSEST: Mapping[RuntimeKind, Pairs] = {
    RuntimeKind.ENGINE: (("convert.quantization", "int4_awq"),),
    RuntimeKind.LLMAPI: (("convert.quantization", "fp8_kv"),),
    RuntimeKind.TWIN: (("runtime.weights", "int8"),),
}
_LIMITS = {"build.max_seq_len": "max_model_len", "build.max_batch_size": "max_num_seqs", "convert.dtype": "dtype"}
OWN: Mapping[RuntimeKind, Mapping[str, str]] = {
    RuntimeKind.VLLM: {**_LIMITS, "convert.tp": "tensor_parallel_size"},
    RuntimeKind.LLMAPI: {
        "convert.tp": "tensor_parallel_size",
        "serve.kv_cache_free_gpu_mem_fraction": "kv_cache_config.free_gpu_memory_fraction",
        "convert.quantization": "kv_cache_config.dtype",
    },
}
"""What vLLM and LLM() call a recipe's keys, where that is another word."""


def _together(easing: Easing, recipe: Recipe, coarsest: Pairs) -> Iterator[Change]:
    """What no change does alone: the coarsest weights or cache, one slot, and the longest sequence that then fits."""
    pairs: list[Pair] = []
    if recipe.convert.quantization == "none" and recipe.runtime.weights is None:
        pairs += coarsest
    if recipe.build.max_batch_size > 1:
        pairs.append(("build.max_batch_size", 1))
    eased = recipe.having(*pairs)
    if not easing.reaches(eased):
        pairs += _shortened(easing, eased)
    yield from easing.tried(recipe, "all of these together", *pairs)


def _pattern(windows: Sequence[int]) -> str:
    """Windows by layer as the shortest pattern that repeats, as the backend reads them."""
    count = len(windows)
    period = next(each for each in range(1, count + 1) if all(windows[at] == windows[at % each] for at in range(count)))
    return ",".join(map(str, windows[:period]))
