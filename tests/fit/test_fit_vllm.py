"""What forge foretells of vLLM on a card, held against what vLLM itself said, and what it says where vLLM would not start."""

from typing import Any

import pytest
from msgspec import structs
from msgspec.structs import replace as changed

from forge.fit import model_shape, report
from forge.fit.gpus import find
from forge.fit.memory import GIB
from forge.fit.verdict import Load, Verdict
from forge.schema.recipe import Lora
from forge.schema.values import BuildTable, ConvertTable, Gpu, Recipe, RuntimeKind, RuntimeTable, ServeTable, Source

SMOL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
LLAMA3: dict[str, Any] = SMOL | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
CARD = "H100 SXM"


def load(
    config: dict[str, Any], *, slots: int = 64, length: int = 4096, convert: ConvertTable | None = None, **vllm: Any
) -> Load:
    recipe = Recipe(
        name="x",
        source=Source(hub="a/b"),
        build=BuildTable(max_batch_size=slots, max_seq_len=length, max_input_len=length // 2),
        convert=convert or ConvertTable(),
        runtime=RuntimeTable(kind=RuntimeKind.VLLM),
        serve=ServeTable(vllm=vllm),
    )
    return Load(recipe, model_shape.read(config), model_shape.tensors(config), 10**9, basis="config.json")


def fit(loaded: Load, gpu: Gpu | None = None) -> report.Fit:
    return report.report([loaded], [gpu or find(CARD)], named=gpu is None).fits[0]


def test_the_h100_run_that_set_the_factors_is_met() -> None:
    found = fit(load(SMOL))
    assert found.judgement is not None
    assert found.weight_ranks[0] / GIB == pytest.approx(0.25, rel=0.05)
    assert found.judgement.room / GIB == pytest.approx(72.14, rel=0.05)
    assert found.judgement.tokens == pytest.approx(3_361_808, rel=0.05)
    assert found.judgement.left is not None
    assert found.judgement.left.size == pytest.approx(5.5e9, rel=0.1)
    assert found.judgement.left.low <= 5.5e9 <= found.judgement.left.high


def test_weights_work_and_cache_are_taken_the_rest_is_left() -> None:
    for card in (None, changed(find(CARD), free=80 * GIB - 3 * GIB)):
        found = fit(load(SMOL, gpu_memory_utilization=0.5), card)
        assert found.judgement is not None
        assert found.judgement.left is not None
        assert found.judgement.asked == found.weight_ranks[0] + found.activation.size + found.judgement.room
        gone = found.judgement.asked + found.judgement.left.size
        free = card.free if card and card.free is not None else find(CARD).memory
        assert 0 < free - gone < 2 * GIB, "Triton, a CUDA context and what the driver keeps"
    too_much = fit(load(SMOL), changed(find(CARD), free=10 * GIB)).judgement
    assert too_much is not None
    assert (too_much.left, too_much.asked) == (None, 0)
    stated = fit(load(SMOL, kv_cache_memory_bytes=GIB)).judgement
    assert stated is not None
    assert stated.left is not None
    assert stated.left.size > 70 * GIB


def test_a_stated_part_of_the_card_is_shared_out() -> None:
    found = fit(load(SMOL, slots=256, gpu_memory_utilization=0.3))
    assert found.judgement is not None
    assert found.judgement.room / GIB == pytest.approx(22, rel=0.05)


def test_an_8b_models_weights_cache_and_work_are_vllms_own() -> None:
    """14.96 GiB, and a peak of 1.26 GiB (pull request 10511 of vLLM, with 0.16 GiB of libraries)."""
    found = fit(load(LLAMA3, slots=256, enforce_eager=True))
    assert found.weight_ranks[0] / GIB == pytest.approx(14.96, rel=0.01)
    assert found.kv_per_token == 2 * 32 * 8 * 128 * 2
    assert found.activation.size / GIB == pytest.approx(1.26 + 0.16, rel=0.1)


def test_what_keeps_vllm_from_starting_is_said_with_fix() -> None:
    loaded = load(LLAMA3, slots=1, length=131072)
    found = fit(loaded, changed(find("RTX 4090"), free=None))
    assert found.judgement is not None
    assert found.judgement.verdict is Verdict.NO
    assert found.judgement.short
    fixes = {change.set[0][0]: change.set[0][1] for change in found.changes}
    longest = int(fixes["build.max_seq_len"])
    assert fit(load(LLAMA3, slots=1, length=longest), find("RTX 4090")).judgement is not None
    for length, verdict in ((longest, Verdict.FITS), (longest + 64, Verdict.NO)):
        judged = fit(load(LLAMA3, slots=1, length=length), find("RTX 4090")).judgement
        assert judged is not None
        assert judged.verdict is verdict


def test_the_part_that_would_do_is_named() -> None:
    """Where more of the card would do."""
    found = fit(load(LLAMA3, slots=1, gpu_memory_utilization=0.2))
    part = next(change.set[0][1] for change in found.changes if change.set[0][0] == "serve.vllm.gpu_memory_utilization")
    judged = fit(load(LLAMA3, slots=1, gpu_memory_utilization=float(part))).judgement
    less = fit(load(LLAMA3, slots=1, gpu_memory_utilization=float(part) - 0.01)).judgement
    assert judged is not None
    assert less is not None
    assert (judged.verdict, less.verdict) == (Verdict.FITS, Verdict.NO)


def test_a_card_partly_held_by_others_does_not_start_it() -> None:
    held = changed(find(CARD), free=find(CARD).memory // 2)
    found = fit(load(SMOL), held)
    assert found.judgement is not None
    assert found.judgement.verdict is Verdict.NO
    assert found.judgement.absent > 30 * GIB
    ((key, part),) = found.changes[0].set
    assert key == "serve.vllm.gpu_memory_utilization"
    assert 0.45 < float(part) < 0.5


def test_narrow_caches_ranks_and_windows_count_as_in_vllm() -> None:
    assert fit(load(LLAMA3, kv_cache_dtype="fp8")).kv_per_token * 2 == fit(load(LLAMA3)).kv_per_token
    halves = fit(load(LLAMA3, convert=ConvertTable(tp=2)))
    assert halves.weight_ranks[0] / GIB == pytest.approx(7.48, rel=0.01)
    windowed = SMOL | {"model_type": "mistral", "sliding_window": 1024}
    assert fit(load(windowed)).kv_sequence == 30 * 768 * (1024 + 2048)


def test_on_a_cpu_its_cache_is_what_forge_says() -> None:
    found = report.report([load(SMOL)], (), 16 * GIB).fits[0]
    assert found.judgement is not None
    assert found.in_host_memory
    assert found.judgement.room == 4 * GIB
    small = report.report([load(SMOL)], (), 4 * GIB).fits[0].judgement
    assert small is not None
    assert (small.verdict, small.absent > 0) == (Verdict.NO, True)


def test_adapters_take_room_over_every_matrix_of_the_model() -> None:
    bare = load(LLAMA3)
    recipe = structs.replace(bare.recipe, lora=(Lora(name="a", hub="x/y"), Lora(name="b", hub="x/z")))
    found = fit(changed(bare, recipe=recipe, lora_rank=16))
    matrices = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)  # q and o, k and v, gate, up and down
    assert found.adapters.low == 2 * 16 * 2 * 32 * matrices
    assert found.adapters.high == found.adapters.low + 2 * 16 * 2 * 2 * (128256 + 4096)
    with_them, without = found.judgement, fit(bare).judgement
    assert with_them is not None
    assert without is not None
    assert without.room - with_them.room == found.adapters.size
    stated = fit(changed(load(LLAMA3, max_loras=1, max_lora_rank=8), lora_rank=16))
    assert stated.adapters.size == 0, "there is none"
