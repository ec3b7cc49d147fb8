"""What fits, what would make it fit, and how several models share one GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace, replace as changed

from forge.cli.fit_report import lines
from forge.errors import HostError
from forge.fit import gpus, model_shape, report
from forge.fit.gpus import find, table
from forge.fit.memory import GIB
from forge.fit.sharing import Claim, fractions
from forge.fit.suggestions import Change
from forge.fit.verdict import Load, Verdict, bench, judge
from forge.schema.values import BuildTable, ConvertTable, Gpu, Recipe, Role, RuntimeKind, RuntimeTable, ServeTable, Source

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "published_models.json").read_text())
CONFIGS: dict[str, dict[str, Any]] = {model["name"]: model["config"] for model in PUBLISHED["models"]}
LLAMA2, LLAMA3, GEMMA2 = "meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B", "google/gemma-2-9b"


def load(name: str = LLAMA2, called: str = "x", **tables: Any) -> Load:
    build = tables.pop("build", BuildTable(max_batch_size=8, max_seq_len=4096))
    recipe = Recipe(name=called, source=Source(hub="a/b"), build=build, **tables)
    return Load(recipe, model_shape.read(CONFIGS[name]), model_shape.tensors(CONFIGS[name]), 10**9, basis="config.json")


def fit(loaded: Load, card: str) -> report.Fit:
    return report.report([loaded], [find(card)], named=True).fits[0]


def keys(found: tuple[Change, ...]) -> list[str]:
    return [change.set[-1][0] for change in found]


def applied(recipe: Recipe, change: Change) -> Recipe:
    """A recipe with the keys that a change names, as a person would write them."""
    for key, value in change.set:
        table, _, name = key.partition(".")
        if name.startswith("parameters."):
            said = {Role.TENSORRT_LLM: {name.rpartition(".")[2]: value}}
            recipe = replace(recipe, serve=replace(recipe.serve, parameters=said))
            continue
        old = getattr(recipe, table)
        typed = type(getattr(old, name) or 0)(value)
        recipe = replace(recipe, **{table: replace(old, **{name: typed})})
    return recipe


# -- cards


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA H100 80GB HBM3", None),
        ("A100 80 GB PCIe", "A100 80GB PCIe"),
        ("a100 40gb", "A100 40GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("H200", "H200"),
    ],
)
def test_a_card_is_found_by_peoples_and_drivers_words(said: str, name: str | None) -> None:
    found = gpus.known(said)
    assert (found.name if found else None) == name


def test_an_unknown_card_is_answered_with_the_nearest_ones() -> None:
    with pytest.raises(HostError) as caught:
        find("RTX 4091")
    assert "RTX 4090" in caught.value.hint.split("?")[0]


def test_every_card_of_the_table_is_found_by_its_name() -> None:
    for gpu in table():
        assert find(gpu.name) == gpu
        assert gpu.available == gpu.memory > 8 * 10**9
        assert float(gpu.capability) >= 7.0


# -- verdicts and changes


def test_a_model_with_room_for_every_slot_needs_no_change() -> None:
    found = fit(load(LLAMA3), "H100 SXM")
    assert found.judgement is not None
    assert found.judgement.verdict is Verdict.FITS
    assert found.changes == ()


def test_suggestions_for_a_limited_cache_begin_with_the_least_intrusive() -> None:
    found = fit(load(convert=ConvertTable(dtype="bfloat16")), "RTX 4090")
    assert keys(found.changes) == [
        "build.max_batch_size",
        "convert.quantization",
        "build.max_seq_len",
        "convert.quantization",
        "convert.quantization",
        "convert.tp",
    ]
    assert all(change.verdict is Verdict.FITS for change in found.changes)


def test_what_does_not_fit_says_what_is_missing_and_helps() -> None:
    found = fit(load(), "RTX 4080")
    assert found.judgement is not None
    assert found.judgement.verdict is Verdict.NO
    assert found.judgement.short > 0
    assert "build.max_seq_len" in keys(found.changes)
    assert all(change.tokens > 0 for change in found.changes)


@pytest.mark.parametrize("card", ["RTX 4060", "RTX 4080", "L4", "RTX 4090", "A100 40GB"])
@pytest.mark.parametrize("name", [LLAMA2, LLAMA3, GEMMA2])
def test_a_change_does_what_it_says(name: str, card: str) -> None:
    before = load(name, build=BuildTable(max_batch_size=16, max_seq_len=8192))
    for change in fit(before, card).changes:
        after = changed(before, recipe=applied(before.recipe, change))
        judged = fit(after, card).judgement
        assert judged is not None
        assert (judged.verdict, judged.tokens) == (change.verdict, change.tokens)


def test_the_smallest_change_is_named_one_step_further_fails() -> None:
    before = load()
    slots = next(change for change in fit(before, "RTX 4090").changes if change.set[0][0] == "build.max_batch_size")
    for more, verdict in ((0, Verdict.FITS), (1, Verdict.LIMITED)):
        count = int(slots.set[0][1]) + more
        again = changed(before, recipe=replace(before.recipe, build=replace(before.recipe.build, max_batch_size=count)))
        judged = fit(again, "RTX 4090").judgement
        assert judged is not None
        assert judged.verdict is verdict


def test_a_low_fraction_is_raised_before_anything_else_is_touched() -> None:
    found = fit(load(LLAMA3, serve=ServeTable(kv_cache_free_gpu_mem_fraction=0.1)), "RTX 4090")
    assert found.changes[0].set == (("serve.kv_cache_free_gpu_mem_fraction", "0.9"),)


def test_sliding_layers_are_offered_as_a_change_that_costs_nothing() -> None:
    build = BuildTable(max_batch_size=5, max_seq_len=8192)
    found = fit(load(GEMMA2, build=build, convert=ConvertTable(quantization="int8_weight_only")), "RTX 4090")
    windows = next(change for change in found.changes if "max_attention_window_size" in change.set[0][0])
    assert windows.set[0][1] == "4096,8192"


def test_where_no_change_does_it_alone_several_do_together() -> None:
    found = fit(load("google/gemma-7b", build=BuildTable(max_batch_size=8, max_input_len=7000, max_seq_len=8192)), "RTX 4060")
    keys = ["convert.quantization", "build.max_batch_size", "build.max_seq_len", "build.max_input_len"]
    assert [key for key, _ in found.changes[0].set] == keys
    assert found.changes[0].verdict is not Verdict.NO


def test_a_quantization_without_kernels_here_is_refused_and_never_offered() -> None:
    refused = fit(load(convert=ConvertTable(dtype="float16", quantization="fp8")), "A100 80GB SXM")
    assert refused.judgement is not None
    assert refused.judgement.verdict is Verdict.NO
    assert refused.objections == ("fp8 needs compute capability 8.9, A100 80GB SXM has 8.0",)
    offered = fit(load(), "A10").changes
    assert not any(value.startswith("fp8") for change in offered for _, value in change.set)


def test_an_old_card_is_offered_float16_instead_of_bfloat16() -> None:
    found = fit(load(LLAMA3, convert=ConvertTable(dtype="bfloat16")), "V100 32GB")
    assert found.changes[0].set == (("convert.dtype", "float16"),)


def test_more_gpus_than_are_here_are_refused() -> None:
    here = [Gpu("RTX 4090", 24 * GIB, "8.9", free=23 * GIB)]
    found = report.report([load(convert=ConvertTable(tp=2))], here)
    assert not found.fit
    assert "asks for 2 GPUs" in found.fits[0].objections[0]


def test_what_others_hold_of_a_gpu_is_not_there() -> None:
    free = report.report([load(LLAMA3)], [Gpu("A card", 48 * GIB, "8.9", free=47 * GIB)])
    taken = report.report([load(LLAMA3)], [Gpu("A card", 48 * GIB, "8.9", free=12 * GIB)])
    assert free.fit
    assert not taken.fit


def test_a_drafts_weights_are_not_there_for_the_cache() -> None:
    alone = fit(load(LLAMA3), "H100 SXM").judgement
    drafted = fit(changed(load(LLAMA3), draft=5 * 10**9), "H100 SXM").judgement
    assert alone is not None
    assert drafted is not None
    assert alone.room - drafted.room == pytest.approx(0.9 * 5 * 10**9, abs=2)


def test_without_a_gpu_the_smallest_card_that_fits_is_named() -> None:
    found = report.report([load(LLAMA3)]).fits[0]
    assert found.judgement is None
    memory = find(found.smallest).memory
    assert 20 * 10**9 < memory < 26 * 10**9


def test_a_twin_is_judged_by_this_machines_memory() -> None:
    twin = load("HuggingFaceTB/SmolLM2-135M-Instruct", runtime=RuntimeTable(kind=RuntimeKind.TWIN))
    for host, verdict in ((16 * 10**9, Verdict.FITS), (10**9, Verdict.NO)):
        judged = report.report([twin], host=host).fits[0].judgement
        assert judged is not None
        assert judged.verdict is verdict


@given(st.integers(6, 200), st.integers(1, 64))
def test_more_memory_never_makes_a_verdict_worse(gibibytes: int, more: int) -> None:
    order = [Verdict.NO, Verdict.LIMITED, Verdict.FITS]
    verdicts: list[int] = []
    for size in (gibibytes, gibibytes + more):
        recipe = load().recipe
        verdicts.append(order.index(judge(recipe, bench(load())(recipe), Gpu("A card", size * GIB, "9.0")).verdict))
    assert verdicts == sorted(verdicts)


# -- sharing

sizes = st.integers(0, 30 * GIB)


@given(st.integers(1, 200 * GIB), st.lists(st.builds(Claim, sizes, sizes, sizes), min_size=1, max_size=6))
def test_shared_fractions_give_everybody_a_request_and_exceed_nothing(free: int, drawn: list[Claim]) -> None:
    claims = [changed(each, wanted=each.least + each.wanted) for each in drawn]
    found = fractions(free, claims)
    if found is None:
        assert sum(each.fixed + each.least for each in claims) > 0.94 * (free - sum(each.fixed for each in claims))
        return
    for claim, fraction in zip(claims, found, strict=True):
        free -= claim.fixed
        assert free >= 0
        assert 0 <= fraction < 1
        cache = int(free * fraction)
        assert claim.least - free / 10**6 - 1 <= cache <= claim.wanted
        free -= cache


def test_a_later_model_takes_a_larger_fraction_of_less() -> None:
    first, second = fractions(40 * GIB, [Claim(10 * GIB, GIB, 20 * GIB)] * 2) or (0.0, 0.0)
    assert first < second < 1
    assert int(30 * GIB * first) == pytest.approx(9.5 * GIB, rel=1e-5)


def test_several_recipes_on_one_gpu_have_fractions_in_load_order() -> None:
    pair = [load(LLAMA3, called="a"), load("google/gemma-2b", called="b")]
    found = report.report(pair, [find("A100 80GB SXM")], named=True)
    assert [share.name for share in found.shares] == ["a", "b"]
    assert all(0 < share.fraction < 1 and share.tokens > 0 for share in found.shares)
    assert found.fit


def test_what_fits_alone_but_not_together_says_missing_bytes() -> None:
    pair = [load(LLAMA3, called="a"), load(LLAMA2, called="b")]
    found = report.report(pair, [find("RTX 4090")], named=True)
    assert all(each.judgement and each.judgement.verdict is not Verdict.NO for each in found.fits)
    assert found.short > 5 * 10**9
    assert not found.fit


def test_twins_are_counted_together_in_the_machines_memory() -> None:
    runtime = RuntimeTable(kind=RuntimeKind.TWIN)
    pair = [load("HuggingFaceTB/SmolLM2-135M-Instruct", runtime=runtime, called=name) for name in ("a", "b")]
    alone = report.report(pair[:1], host=24 * GIB)
    assert alone.together == 0
    both = report.report(pair, host=24 * GIB)
    (one,) = alone.fits
    assert both.together == 2 * (sum(one.weight_ranks) + one.activation.size + one.kv_sequence)
    assert both.fit
    tight = report.report(pair, host=both.together - 1)
    assert all(each.judgement and each.judgement.verdict is not Verdict.NO for each in tight.fits)
    assert (tight.short, tight.fit) == (1, False)
    assert "together in this machine's memory: about" in "\n".join(lines(tight))
