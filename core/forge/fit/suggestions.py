"""The smallest changes that make a recipe fit, the least intrusive first, each with the figures that it leads to. Pure.

Every change is tried as a recipe: what is said of it is what the same arithmetic says of that recipe.
"""

from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from forge.fit.memory import CALIBRATED, tokens_at_once
from forge.fit.verdict import BFLOAT16, CAPABILITIES, Judgement, Load, Verdict, bench, judge, objections, refused
from forge.fit.vllm import UTILIZATION
from forge.fit.weights import terms
from forge.schema.values import Gpu, Recipe, Role, RuntimeKind

STEP = 64
"""Sequence lengths are tried in multiples of a cache block."""
FRACTIONS = (0.9, 0.95)
PARALLEL = (2, 4, 8)
MOST_OF_A_CARD = 97
"""Hundredths of a card that vLLM is told to take at most: its libraries allocate beside what it counts."""
ORDER = (Verdict.NO, Verdict.LIMITED, Verdict.FITS)


class Change(Struct, frozen=True):
    """A recipe's keys with the values to give them, and what then holds. Bytes are of the fullest GPU."""

    set: tuple[tuple[str, str], ...]
    why: str
    verdict: Verdict
    weights: int
    room: int
    tokens: int
    sequences: int


class Easing:
    """Looks for changes to one load on one kind of GPU, of which there are ``count`` (0: as many as needed)."""

    def __init__(self, load: Load, gpu: Gpu, count: int = 0) -> None:
        self.load, self.gpu, self.count = load, gpu, count
        self.needed = bench(load)
        now = self.judged(load.recipe).verdict
        self.done = now is Verdict.FITS
        self._target = Verdict.LIMITED if now is Verdict.NO else Verdict.FITS
        self._first: tuple[tuple[str, str], ...] = ()

    def changes(self) -> tuple[Change, ...]:
        """None where it fits whole; otherwise what alone reaches the next better verdict, or what does together."""
        if self.done:
            return ()
        recipe = self.load.recipe
        looks = VLLM_LOOKS if recipe.runtime.kind is RuntimeKind.VLLM else _LOOKS
        if terms(recipe, self.load.shape).dtype == "bfloat16" and not self.gpu.at_least(BFLOAT16):
            recipe = replace(recipe, convert=replace(recipe.convert, dtype="float16"))
            self._first = (("convert.dtype", "float16"),)
            if self.reaches(recipe):
                return (self.change(recipe, "this GPU computes in float16"),)
        alone = [found for look in looks for found in look(self, recipe)]
        return (*(alone or self._joined(recipe)), *_parallel(self, recipe))

    def _joined(self, recipe: Recipe) -> Iterator[Change]:
        return iter(()) if recipe.runtime.kind is RuntimeKind.VLLM else _together(self, recipe)

    def judged(self, recipe: Recipe) -> Judgement:
        judged = judge(recipe, self.needed(recipe), self.gpu)
        return refused(judged) if objections(recipe, terms(recipe, self.load.shape), self.gpu) else judged

    def reaches(self, recipe: Recipe) -> bool:
        return ORDER.index(self.judged(recipe).verdict) >= ORDER.index(self._target)

    def change(self, recipe: Recipe, why: str, *pairs: tuple[str, object]) -> Change:
        judged, need = self.judged(recipe), self.needed(recipe)
        stated = (*self._first, *((key, str(value)) for key, value in pairs))
        return Change(stated, why, judged.verdict, need.weights.heaviest, judged.room, judged.tokens, judged.sequences)

    def largest(self, values: Sequence[int], made: Callable[[int], Recipe]) -> int | None:
        """The largest of ascending ``values`` whose recipe reaches the target: what fits stays so for smaller ones."""
        low, high = 0, len(values)
        while low < high:
            middle = (low + high) // 2
            if self.reaches(made(values[middle])):
                low = middle + 1
            else:
                high = middle
        return values[low - 1] if low else None


Look = Callable[[Easing, Recipe], Iterator[Change]]


def _more_cache(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    for fraction in FRACTIONS:
        if fraction > recipe.serve.fraction:
            changed = _fraction(recipe, fraction)
            if easing.reaches(changed):
                yield easing.change(
                    changed, "more of what is free goes to the cache", ("serve.kv_cache_free_gpu_mem_fraction", fraction)
                )
                return


def _windows(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    shape = easing.load.shape
    if not shape.slides or terms(recipe, shape).windowed:
        return
    words = _pattern([window or recipe.build.max_seq_len for _, window in shape.windows])
    changed = _windowed(recipe, words)
    if easing.reaches(changed):
        key = "serve.parameters.tensorrt_llm.max_attention_window_size"
        yield easing.change(changed, "sliding layers then keep no more than they look back on", (key, words))


def _fewer_tokens(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    """A prompt goes through in one pass, so this must not fall below the longest."""
    least, now = recipe.build.max_input_len, tokens_at_once(recipe)
    values = [value for value in range(-(-least // STEP) * STEP, now, STEP) if value >= least]
    found = easing.largest(values, lambda value: replace(recipe, build=replace(recipe.build, max_num_tokens=value)))
    if found is not None:
        changed = replace(recipe, build=replace(recipe.build, max_num_tokens=found))
        yield easing.change(changed, "activations shrink; prompts take turns", ("build.max_num_tokens", found))


def _fewer_slots(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    found = easing.largest(range(1, recipe.build.max_batch_size), lambda value: _batch(recipe, value))
    if found is not None:
        yield easing.change(_batch(recipe, found), "fewer requests at a time", ("build.max_batch_size", found))


def _narrow_cache(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    if terms(recipe, easing.load.shape).cache_width == 1:
        return
    words = "fp8" if easing.gpu.at_least(CAPABILITIES["fp8_kv"]) else "int8"
    changed, key, value = _narrowed(recipe, words)
    if easing.reaches(changed):
        yield easing.change(changed, f"a cache in {words} is half as large", (key, value))


def _shorter(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    shorter = _shortened(easing, recipe)
    if shorter is not None:
        changed, pairs = shorter
        yield easing.change(changed, "shorter conversations", *pairs)


def _shortened(easing: Easing, recipe: Recipe) -> tuple[Recipe, list[tuple[str, object]]] | None:
    """With the longest sequences that fit, and what changes for that; an encoder's prompt takes no room in a sequence."""

    def cut(value: int) -> Recipe:
        longest = recipe.build.max_input_len if easing.load.shape.encoder_layers else min(recipe.build.max_input_len, value - 1)
        return replace(recipe, build=replace(recipe.build, max_seq_len=value, max_input_len=longest))

    found = easing.largest(range(2 * STEP, recipe.build.max_seq_len, STEP), cut)
    if found is None:
        return None
    changed = cut(found)
    pairs: list[tuple[str, object]] = [("build.max_seq_len", found)]
    if changed.build.max_input_len != recipe.build.max_input_len:
        pairs.append(("build.max_input_len", changed.build.max_input_len))
    return changed, pairs


def _quantized(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    if recipe.convert.quantization != "none":
        return
    for quantization, why in (
        ("int8_weight_only", "weights in int8, no calibration"),
        ("fp8", "weights and products in fp8, calibrated"),
        ("int4_awq", "weights in int4, calibrated"),
        ("int4_weight_only", "weights in int4, no calibration: the coarsest"),
    ):
        changed = replace(recipe, convert=replace(recipe.convert, quantization=quantization))
        if easing.reaches(changed):
            if easing.needed(changed).calibration > easing.gpu.memory * max(easing.count, 1):
                why += " partly in host memory, which is slow"  # noqa: PLW2901
            yield easing.change(changed, why, ("convert.quantization", quantization))


def _parallel(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    heads, count = easing.load.shape.heads, easing.count
    for tp in PARALLEL:
        gpus = tp * recipe.convert.pp
        if tp > recipe.convert.tp and heads % tp == 0 and (not count or gpus <= count):
            changed = replace(recipe, convert=replace(recipe.convert, tp=tp))
            if easing.reaches(changed):
                yield easing.change(changed, f"shared out among {gpus} such GPUs", ("convert.tp", tp))
                return


_LOOKS: tuple[Look, ...] = (
    _more_cache,
    _windows,
    _fewer_tokens,
    _fewer_slots,
    _narrow_cache,
    _shorter,
    _quantized,
)
"""From what costs nothing at all to what costs quality. Another GPU is asked for last."""


def _more_of_the_card(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    """The smallest part of the card, in hundredths, that does it."""
    now = easing.needed(recipe).utilization
    for hundredths in range(int(now * 100) + 1, MOST_OF_A_CARD + 1):
        changed = _serving(recipe, UTILIZATION, hundredths / 100)
        if easing.reaches(changed):
            yield easing.change(changed, "vLLM takes more of the card", (f"serve.vllm.{UTILIZATION}", hundredths / 100))
            return


def _less_of_the_card(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    """Where others hold a part of what it asks for: the largest part that is free, if that does."""
    if not easing.judged(recipe).absent:
        return
    now = easing.needed(recipe).utilization
    for hundredths in range(int(now * 100), 0, -1):
        changed = _serving(recipe, UTILIZATION, hundredths / 100)
        if hundredths / 100 < now and not easing.judged(changed).absent:
            if easing.reaches(changed):
                yield easing.change(changed, "no more than is free", (f"serve.vllm.{UTILIZATION}", hundredths / 100))
            return


def _narrow_vllm_cache(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    if terms(recipe, easing.load.shape).cache_width > 1 and easing.gpu.at_least(CAPABILITIES["fp8_kv"]):
        changed = _serving(recipe, "kv_cache_dtype", "fp8")
        if easing.reaches(changed):
            yield easing.change(changed, "a cache in fp8 is half as large", ("serve.vllm.kv_cache_dtype", "fp8"))


def _quantized_while_loading(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    if "quantization" in recipe.serve.vllm or easing.load.shape.quantized or not easing.gpu.at_least(CAPABILITIES["fp8"]):
        return
    changed = _serving(recipe, "quantization", "fp8")
    if easing.reaches(changed):
        yield easing.change(changed, "weights in fp8, made so when vLLM loads them", ("serve.vllm.quantization", "fp8"))


VLLM_LOOKS: tuple[Look, ...] = (
    _less_of_the_card,
    _more_of_the_card,
    _fewer_slots,
    _narrow_vllm_cache,
    _shorter,
    _quantized_while_loading,
)
"""The same order, in vLLM's own arguments."""


def _serving(recipe: Recipe, argument: str, value: float | str) -> Recipe:
    return replace(recipe, serve=replace(recipe.serve, vllm={**recipe.serve.vllm, argument: value}))


def _together(easing: Easing, recipe: Recipe) -> Iterator[Change]:
    """What no change does alone: weights in int4, few slots, a narrow cache, and the longest sequence that then fits."""
    pairs: list[tuple[str, object]] = []
    if recipe.convert.quantization == "none":
        recipe = replace(recipe, convert=replace(recipe.convert, quantization="int4_awq"))
        pairs.append(("convert.quantization", "int4_awq"))
    if recipe.build.max_batch_size > 1:
        recipe = _batch(recipe, 1)
        pairs.append(("build.max_batch_size", 1))
    if easing.reaches(recipe):
        yield easing.change(recipe, "all of these together", *pairs)
        return
    shorter = _shortened(easing, recipe)
    if shorter is not None:
        changed, further = shorter
        yield easing.change(changed, "all of these together", *pairs, *further)


def _fraction(recipe: Recipe, fraction: float) -> Recipe:
    return replace(recipe, serve=replace(recipe.serve, kv_cache_free_gpu_mem_fraction=fraction))


def _windowed(recipe: Recipe, words: str) -> Recipe:
    named = {**recipe.serve.parameters.get(Role.TENSORRT_LLM, {}), "max_attention_window_size": words}
    return replace(recipe, serve=replace(recipe.serve, parameters={**recipe.serve.parameters, Role.TENSORRT_LLM: named}))


def _narrowed(recipe: Recipe, words: str) -> tuple[Recipe, str, str]:
    """A narrow cache is a quantization of its own, or a flag beside another one."""
    table = recipe.convert
    if table.quantization == "none":
        return replace(recipe, convert=replace(table, quantization=f"{words}_kv")), "convert.quantization", f"{words}_kv"
    if table.quantization in CALIBRATED:
        changed = replace(table, args={**table.args, "kv_cache_dtype": words})
        return replace(recipe, convert=changed), "convert.args.kv_cache_dtype", words
    changed = replace(table, args={**table.args, "int8_kv_cache": True})
    return replace(recipe, convert=changed), "convert.args.int8_kv_cache", "true"


def _batch(recipe: Recipe, value: int) -> Recipe:
    return replace(recipe, build=replace(recipe.build, max_batch_size=value))


def _pattern(windows: Sequence[int]) -> str:
    """Windows by layer as the shortest pattern that repeats, as the backend reads them."""
    count = len(windows)
    period = next(each for each in range(1, count + 1) if all(windows[at] == windows[at % each] for at in range(count)))
    return ",".join(map(str, windows[:period]))
