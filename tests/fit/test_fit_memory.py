"""Weights, caches and places: what more costs more, what ranks share out, and what is left as it was."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from forge.files.safetensors import Tensor, length, parse
from forge.fit import memory, model_shape, weights
from forge.fit.memory import KvCache
from forge.fit.model_shape import UnknownShapeError
from forge.fit.weights import Part, Terms
from forge.schema.values import BuildTable, ConvertTable, Recipe, Role, RuntimeKind, RuntimeTable, ServeTable, Source
from tiny_checkpoints import FAMILIES, make

LLAMA: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
QUANTIZATIONS = ("none", "int8_weight_only", "int4_weight_only", "fp8", "int4_awq", "w4a8_awq", "int8_sq", "fp8_kv", "int8_kv")
GEMMA2: dict[str, object] = {**LLAMA, "model_type": "gemma2", "sliding_window": 64, "head_dim": 32}


def recipe(**tables: Any) -> Recipe:
    return Recipe(name="x", source=Source(hub="a/b"), **tables)


def weigh(config: dict[str, object], how: Terms) -> weights.Weights:
    return weights.weights(model_shape.tensors(config), model_shape.read(config), how)


# -- shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_promised_by_config_json_are_what_transformers_saves(family: str, tmp_path: Path) -> None:
    make(family, tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    saved = {each.name: each for each in parse(content[8 : 8 + length(content)])}
    config = json.loads((tmp_path / "config.json").read_text())
    assert {each.name: each for each in model_shape.tensors(config)} == saved


def test_a_kind_that_is_not_known_promises_no_tensors() -> None:
    assert model_shape.tensors({**LLAMA, "model_type": "mamba"}) == ()


def test_a_config_without_layers_is_refused_by_the_key() -> None:
    with pytest.raises(UnknownShapeError, match="num_hidden_layers"):
        model_shape.read({"hidden_size": 4, "num_attention_heads": 2, "vocab_size": 3})


def test_a_seeing_models_language_model_is_what_counts() -> None:
    text = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    shape = model_shape.read({"model_type": "gemma3", "text_config": {**text, "model_type": "gemma3_text"}})
    assert (shape.kind, shape.layers, shape.tied) == ("gemma3_text", 8, True)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, [0, 0, 0, 0, 0, 0, 0, 0]),
        ({"model_type": "mistral", "sliding_window": 64}, [64] * 8),
        ({"model_type": "gemma2", "sliding_window": 64}, [64, 0, 64, 0, 64, 0, 64, 0]),
        ({"model_type": "gemma3_text", "sliding_window": 64}, [64, 64, 64, 64, 64, 0, 64, 64]),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False, "max_window_layers": 2}, [0] * 8),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 6}, [0] * 6 + [64] * 2),
        ({"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"] * 4}, [0, 64] * 4),
        ({"layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 2}, [0, 0]),
        ({"num_kv_shared_layers": 3}, [0] * 5),
        ({"use_cla": True, "cla_share_factor": 2}, [0] * 4),
    ],
)
def test_each_family_says_which_layers_keep_what(changes: dict[str, object], windows: list[int]) -> None:
    assert [window for _, window in model_shape.read({**LLAMA, **changes}).windows] == windows


def test_multi_query_means_one_key_value_head_for_all() -> None:
    shape = model_shape.read(
        {"model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 2, "n_head": 4, "vocab_size": 9, "multi_query": True}
    )
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (4, 1, 16)


# -- weights


def test_embeddings_head_and_norms_stay_under_every_quantization() -> None:
    kept = 1000 * 256 * 2
    for quantization in QUANTIZATIONS:
        kinds = weigh(LLAMA, Terms("bfloat16", quantization)).kinds
        assert kinds[f"{Part.EMBEDDING}, bfloat16"] == kinds[f"{Part.HEAD}, bfloat16"] == kept
        assert kinds[f"{Part.SMALL}, bfloat16"] == 17 * 256 * 2


def test_a_matrix_carries_its_scales() -> None:
    shape = model_shape.read(LLAMA)
    matrix = [Tensor("model.layers.0.mlp.up_proj.weight", "BF16", (512, 256))]

    def total(quantization: str, group: int = 128) -> int:
        return weights.weights(matrix, replace(shape, tied=True), Terms("bfloat16", quantization, group)).total

    assert total("none") == total("fp8_kv") == 512 * 256 * 2
    assert total("int8_weight_only") == 512 * 256 + 512 * 2
    assert total("int4_weight_only") == 512 * 128 + 512 * 2
    assert total("int4_awq") == 512 * 128 + 512 * 2 * 2 + 256 * 2
    assert total("int4_awq", group=64) == 512 * 128 + 512 * 4 * 2 + 256 * 2
    assert total("fp8") == 512 * 256 + 8


def test_weights_that_were_quantized_before_keep_their_bytes() -> None:
    tensors = (
        Tensor("model.layers.0.mlp.up_proj.qweight", "I32", (256, 64)),
        Tensor("model.layers.0.mlp.up_proj.scales", "F16", (2, 512)),
    )
    held = weights.weights(tensors, model_shape.read({**LLAMA, "tie_word_embeddings": True}), Terms("float16"))
    assert held.parameters == 256 * 64 * 8
    assert held.kinds[f"{Part.MATRIX}, I32"] == 256 * 64 * 4


def test_the_eyes_of_a_model_that_sees_are_not_converted() -> None:
    tensors = (*model_shape.tensors(LLAMA), Tensor("vision_tower.blocks.0.mlp.weight", "BF16", (999, 999)))
    assert weights.weights(tensors, model_shape.read(LLAMA), Terms("bfloat16")).ranks == weigh(LLAMA, Terms("bfloat16")).ranks


EYES = {
    "llava": ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", "multi_modal_projector.linear_1.weight"),
    "qwen2_vl": ("visual.blocks.0.attn.qkv.weight", "model.visual.merger.mlp.0.weight"),
}


@pytest.mark.parametrize(("kind", "seen"), [("vllm", True), ("llmapi", True), ("engine", False)])
@pytest.mark.parametrize("names", EYES.values(), ids=EYES)
def test_vllm_and_llm_load_a_models_eyes_engines_do_not(names: tuple[str, ...], kind: str, seen: bool) -> None:
    recipe = Recipe(name="m", source=Source(hub="a/m"), runtime=RuntimeTable(kind=RuntimeKind(kind)))
    shape = model_shape.read({**LLAMA, "torch_dtype": "bfloat16"})
    terms = weights.terms(recipe, shape)
    plain = model_shape.tensors(LLAMA)
    eyes = tuple(Tensor(name, "BF16", (999, 999)) for name in names)
    more = weights.weights((*plain, *eyes), shape, terms).total - weights.weights(plain, shape, terms).total
    assert more == (2 * 999 * 999 * 2 if seen else 0)


CLIP = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "hidden_size": 1024}
QWEN = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "patch_size": 14, "spatial_merge_size": 2}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llava", "vision_config": CLIP, "vision_feature_select_strategy": "default"}, "576 tokens"),
        ({"model_type": "llava", "vision_config": CLIP, "vision_feature_select_strategy": "full"}, "577 tokens"),
        ({"model_type": "llava", "vision_config": {"model_type": "pixtral"}}, ""),
        ({"model_type": "qwen2_vl", "vision_config": QWEN}, "a token for each 28 x 28 pixels"),
        ({"model_type": "llama"}, ""),
    ],
)
def test_what_an_image_takes_of_a_prompt(config: dict[str, object], said: str) -> None:
    assert model_shape.read({**LLAMA, **config}).image == said


def test_a_tied_head_is_free_on_one_gpu_alone() -> None:
    """On each of two it costs a share of a copy."""
    tied = {**LLAMA, "tie_word_embeddings": True}
    head = 1000 * 256 * 2
    assert weigh(LLAMA, Terms("bfloat16")).total - weigh(tied, Terms("bfloat16")).total == head
    assert weigh(LLAMA, Terms("bfloat16", tp=2)).ranks == weigh(tied, Terms("bfloat16", tp=2)).ranks
    assert weigh(tied, Terms("bfloat16", tp=2, split_embedding=True)).total < weigh(tied, Terms("bfloat16", tp=2)).total


def test_the_first_stage_embeds_and_the_last_has_the_head() -> None:
    ranks = weigh(LLAMA, Terms("bfloat16", pp=4)).ranks
    assert ranks[0] - ranks[1] == 1000 * 256 * 2
    assert ranks[3] - ranks[2] == 1000 * 256 * 2 + 256 * 2
    assert sum(ranks) == weigh(LLAMA, Terms("bfloat16")).total


def test_fewer_key_value_heads_than_ranks_are_repeated() -> None:
    shape = model_shape.read(LLAMA)
    for tp, heads in ((1, 4), (2, 2), (4, 1), (8, 1)):
        assert memory.kv_cache(shape, Terms("bfloat16", tp=tp)).layer == 2 * heads * 32 * 2


@given(
    quantization=st.sampled_from(QUANTIZATIONS),
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.integers(1, 8),
    split=st.booleans(),
    tied=st.booleans(),
)
def test_ranks_repeat_only_embeddings_norms_and_scales(quantization: str, tp: int, pp: int, split: bool, tied: bool) -> None:
    config = {**LLAMA, "num_key_value_heads": 8, "tie_word_embeddings": tied}
    whole = weigh(config, Terms("bfloat16", quantization))
    shared = weigh(config, Terms("bfloat16", quantization, tp=tp, pp=pp, split_embedding=split))
    assert len(shared.ranks) == tp * pp
    assert sum(shared.kinds.values()) == shared.total >= whole.total
    small = whole.kinds[f"{Part.SMALL}, bfloat16"]
    scales = 2 * 8 * 7 * (512 + 1024)  # each rank has scales of its own for the inputs or outputs that it has whole
    repeated = (tp - 1) * (1000 * 256 * 2 + small + scales) + (1000 * 256 * 2 + tp * 256 * 2 if tied else 0)
    assert shared.total <= whole.total + repeated


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 4))
def test_fewer_bits_never_weigh_more(tp: int, pp: int) -> None:
    order = ("none", "int8_weight_only", "int4_awq", "int4_weight_only")
    totals = [weigh(LLAMA, Terms("bfloat16", each, tp=tp, pp=pp)).heaviest for each in order]
    assert totals == sorted(totals, reverse=True)
    assert weigh(LLAMA, Terms("float32", tp=tp, pp=pp)).heaviest > totals[0]


# -- caches and needs


@given(st.integers(1, 4096), st.integers(1, 4096), st.lists(st.integers(0, 200), min_size=1, max_size=40))
def test_a_longer_sequence_needs_no_less_a_window_no_more(first: int, second: int, windows: list[int]) -> None:
    cache = KvCache(8, tuple(windows))
    short, long = sorted((first, second))
    assert cache.sequence(short) <= cache.sequence(long) <= cache.per_token * long
    assert cache.tokens(cache.per_token * long) == long


def test_sliding_layers_keep_their_window_once_the_backend_is_told() -> None:
    shape = model_shape.read(GEMMA2)
    told = recipe(serve=ServeTable(parameters={Role.TENSORRT_LLM: {"max_attention_window_size": "64,2048"}}))
    layer = 2 * 4 * 32 * 2
    assert memory.kv_cache(shape, weights.terms(recipe(), shape)).sequence(1000) == 8 * 1000 * layer
    assert memory.kv_cache(shape, weights.terms(told, shape)).sequence(1000) == (4 * 64 + 4 * 1000) * layer


@pytest.mark.parametrize(
    "table",
    [
        ConvertTable(quantization="fp8_kv"),
        ConvertTable(quantization="int8_kv"),
        ConvertTable(quantization="fp8", args={"kv_cache_dtype": "fp8"}),
        ConvertTable(quantization="int8_weight_only", args={"int8_kv_cache": True}),
    ],
)
def test_a_narrow_cache_is_half_however_asked_for(table: ConvertTable) -> None:
    shape = model_shape.read(LLAMA)
    wide = memory.kv_cache(shape, weights.terms(recipe(), shape)).per_token
    assert 2 * memory.kv_cache(shape, weights.terms(recipe(convert=table), shape)).per_token == wide


def needed(wanted: Recipe, config: dict[str, object] = LLAMA) -> memory.Need:
    shape = model_shape.read(config)
    held = weights.weights(model_shape.tensors(config), shape, weights.terms(wanted, shape))
    return memory.need(wanted, shape, held, 10**6)


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 4))
def test_more_requests_longer_ones_and_more_beams_never_need_less(
    batch: int, more: int, tokens: int, longer: int, beams: int
) -> None:
    def total(batch: int, tokens: int, beams: int) -> int:
        need = needed(recipe(build=BuildTable(max_batch_size=batch, max_seq_len=tokens, max_beam_width=beams)))
        return need.fixed.size + need.wanted

    here = total(batch, tokens, beams)
    assert here <= total(batch + more, tokens, beams)
    assert here <= total(batch, tokens + longer, beams)
    assert here <= total(batch, tokens, beams + 1)


def test_every_estimate_says_its_span() -> None:
    need = needed(recipe(convert=ConvertTable(quantization="int4_awq")))
    for estimate in (need.activation, need.build_gpu, need.build_host, memory.overhead(24 << 30)):
        assert 0 <= estimate.low < estimate.size < estimate.high
    assert need.calibration > needed(recipe()).weights.total
    assert need.disk.total == need.disk.checkpoint + 2 * need.weights.total


def test_a_twin_computes_in_float32_in_one_process() -> None:
    need = needed(recipe(runtime=RuntimeTable(kind=RuntimeKind.TWIN), convert=ConvertTable(quantization="fp8", tp=2)))
    assert need.weights.ranks == (4 * need.weights.parameters,)
    assert need.cache.per_token == 8 * 2 * 4 * 32 * 4
    assert need.build_gpu.high == 0


@pytest.mark.parametrize(("weights", "width"), [("bfloat16", 2), ("int8", 1)])
def test_a_twins_rounded_matrices_take_fewer_bytes(weights: Literal["bfloat16", "int8"], width: int) -> None:
    rounded = needed(recipe(runtime=RuntimeTable(kind=RuntimeKind.TWIN, weights=weights))).weights.kinds
    exact = needed(recipe(runtime=RuntimeTable(kind=RuntimeKind.TWIN))).weights.kinds
    (ours,) = (size for kind, size in rounded.items() if kind.startswith("matrices"))
    (theirs,) = (size for kind, size in exact.items() if kind.startswith("matrices"))
    assert ours * 4 // width == pytest.approx(theirs, rel=0.02)
