"""What fits on which GPU, as one report: every figure of each recipe, its verdict, and what would help. Pure."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from msgspec import Struct

from forge.fit import vllm
from forge.fit.gpus import clash, table
from forge.fit.memory import NOTHING, Disk, Estimate, Need
from forge.fit.sharing import Share, claims, room, shares
from forge.fit.suggestions import Change, InMemory, OnCard
from forge.fit.verdict import Judgement, Load, Verdict, bench, judge, judge_on_cpu, judge_twin, objections, refused
from forge.fit.weights import terms
from forge.schema.values import Gpu, Recipe, RuntimeKind


class Fit(Struct, frozen=True):
    """One recipe's figures in bytes, those of a rank on its fullest GPU; a twin's are of its process."""

    name: str
    runtime: RuntimeKind
    basis: str
    parameters: int
    dtype: str
    quantization: str
    gpus: int
    weights: Mapping[str, int]
    weight_ranks: tuple[int, ...]
    draft: int
    kv_per_token: int
    kv_sequence: int
    kv_whole: int
    kv_encoder: int
    """Bytes that one request keeps of an encoder's text; 0 without an encoder."""
    slots: int
    length: int
    activation: Estimate
    build_gpu: Estimate
    build_host: Estimate
    calibration: int
    disk: Disk
    objections: tuple[str, ...] = ()
    judgement: Judgement | None = None
    """None where there is no place to judge it for."""
    changes: tuple[Change, ...] = ()
    utilization: float = 0.0
    """vLLM's part of the whole card (gpu_memory_utilization); 0 for another runtime, and on a CPU."""
    smallest: str = ""
    """Where there is no GPU to judge: the smallest card of the table that takes it."""
    adapters: Estimate = NOTHING
    """Room for LoRA adapters."""
    image: str = ""
    """What an image takes of a request's tokens, where it is shown any."""

    @property
    def in_host_memory(self) -> bool:
        """Whether this machine's own memory is what it needs."""
        return self.runtime is RuntimeKind.TWIN or (self.runtime is RuntimeKind.VLLM and not self.utilization)


class Report(Struct, frozen=True):
    """``shares`` is how several engines share the GPU, in load order; empty for one, or where ``short`` bytes are missing."""

    fits: tuple[Fit, ...]
    gpu: Gpu | None = None
    gpus: int = 0
    """How many such GPUs are here; 0 where the card is only named."""
    host: int = 0
    """Free bytes of this machine's own memory."""
    shares: tuple[Share, ...] = ()
    short: int = 0
    together: int = 0
    """Bytes of this machine's own memory that several models take, with one request each; 0 for one."""

    @property
    def fit(self) -> bool:
        """Whether nothing that was judged is refused."""
        judged = [each.judgement.verdict for each in self.fits if each.judgement]
        return Verdict.NO not in judged and not self.short


def report(loads: Sequence[Load], gpus: Sequence[Gpu] = (), host: int = 0, *, named: bool = False) -> Report:
    """Everything about these recipes; ``gpus`` are those that are here, or the one that was named.

    Engines share one GPU: each has a rank on it. Of several different GPUs the one with the least room counts.
    """
    gpu = min(gpus, key=lambda each: each.available) if gpus else None
    count = 0 if named else len(gpus)
    fits = tuple(_fit(load, gpu, count, host) for load in loads)
    engines = [load for load in loads if load.recipe.runtime.kind in (RuntimeKind.ENGINE, RuntimeKind.LLMAPI)]
    shared: tuple[Share, ...] | None = ()
    short = 0
    if gpu is not None and len(engines) > 1:
        needs = [bench(load)(load.recipe) for load in engines]
        shared = shares([(load.recipe.name, need) for load, need in zip(engines, needs, strict=True)], gpu)
        if shared is None:
            short = max(sum(claim.fixed + claim.least for claim in claims(needs)) - room(gpu), 1)
    together = _together(fits)
    short = short or (_beyond(loads, gpu) if gpu else 0) or max(together - host, 0)
    return Report(fits, gpu, count, host, shared or (), short, together)


def _together(fits: Sequence[Fit]) -> int:
    """A twin's cache grows with its requests; vLLM on a CPU takes all of its own at the start."""
    held = [
        max(each.weight_ranks)
        + each.draft
        + (each.adapters + each.activation).size
        + (each.kv_sequence if each.runtime is RuntimeKind.TWIN else each.judgement.room)
        for each in fits
        if each.in_host_memory and each.judgement
    ]
    return sum(held) if len(held) > 1 else 0


def _beyond(loads: Sequence[Load], gpu: Gpu) -> int:
    """Bytes of one card that vLLM's models ask for together beyond what it has; 0 where some have a card of their own."""
    of_vllm = [load for load in loads if load.recipe.runtime.kind is RuntimeKind.VLLM and vllm.on_gpu(load.recipe, here=True)]
    places = [frozenset(load.recipe.runtime.gpus.split(",")) for load in of_vllm]
    if len(of_vllm) < 2 or not all(clash(one, other) for one, other in combinations(places, 2)):
        return 0
    together = sum(vllm.asked(load.recipe, bench(load)(load.recipe), gpu) for load in of_vllm)
    return max(together - vllm.usable(gpu), 0)


class _Judged(Struct, frozen=True):
    """What is said of one recipe's ``need`` in its place: what speaks against it, the verdict, and what would help."""

    need: Need
    objections: tuple[str, ...] = ()
    judgement: Judgement | None = None
    changes: tuple[Change, ...] = ()


def _judged(load: Load, gpu: Gpu | None, count: int, host: int) -> _Judged:
    recipe, need = load.recipe, bench(load)(load.recipe)
    kind, contained = recipe.runtime.kind, recipe.runtime.contained
    if kind is RuntimeKind.TWIN:
        return _in_memory(load, need, judge_twin(need, host), host)
    if kind is RuntimeKind.VLLM and not contained and not vllm.on_gpu(recipe, here=gpu is not None):
        need = vllm.without_gpu(need)
        return _in_memory(load, need, judge_on_cpu(recipe, need, host), host)
    if gpu is None:
        return _Judged(need)
    how = terms(recipe, load.shape)
    against = objections(recipe, how, gpu) + _too_many(how.tp * how.pp, count)
    judgement = judge(recipe, need, gpu)
    return _Judged(need, against, refused(judgement) if against else judgement, OnCard(load, gpu, count).changes())


def _in_memory(load: Load, need: Need, judgement: Judgement, host: int) -> _Judged:
    return _Judged(need, judgement=judgement, changes=InMemory(load, host).changes()) if host else _Judged(need)


def _fit(load: Load, gpu: Gpu | None, count: int, host: int) -> Fit:
    recipe, how, judged = load.recipe, terms(load.recipe, load.shape), _judged(load, gpu, count, host)
    need = judged.need
    return Fit(
        name=recipe.name,
        runtime=recipe.runtime.kind,
        basis=load.basis,
        parameters=need.weights.parameters,
        dtype=how.dtype,
        quantization=how.quantization,
        gpus=how.tp * how.pp,
        weights=need.weights.kinds,
        weight_ranks=need.weights.ranks,
        draft=need.draft,
        kv_per_token=need.cache.per_token,
        kv_sequence=need.least,
        kv_whole=need.wanted,
        kv_encoder=need.cache.of_encoder,
        slots=need.slots,
        length=need.length,
        activation=need.activation,
        build_gpu=need.build_gpu,
        build_host=need.build_host,
        calibration=need.calibration,
        disk=need.disk,
        objections=judged.objections,
        judgement=judged.judgement,
        changes=judged.changes,
        utilization=need.utilization,
        smallest="" if judged.judgement else _smallest(recipe, need, load),
        adapters=need.adapters,
        image=load.shape.image if recipe.runtime.kind is RuntimeKind.VLLM else "",
    )


def _too_many(ranks: int, count: int) -> tuple[str, ...]:
    if not count or ranks <= count:
        return ()
    return (f"it asks for {ranks} GPUs (tp x pp), and {count} are here: lower convert.tp or convert.pp",)


def _smallest(recipe: Recipe, need: Need, load: Load) -> str:
    """The card of the table with the least memory that takes the recipe; empty where none does, or none is asked for."""
    if recipe.runtime.kind is RuntimeKind.TWIN or (recipe.runtime.kind is RuntimeKind.VLLM and not need.utilization):
        return ""
    how = terms(recipe, load.shape)
    able = (gpu for gpu in sorted(table(), key=lambda each: each.memory) if not objections(recipe, how, gpu))
    return next((gpu.name for gpu in able if judge(recipe, need, gpu).verdict is not Verdict.NO), "")
