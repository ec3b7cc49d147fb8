"""The arithmetic of ``forge fit`` held against what others published and measured (tests/data, with the sources)."""

import json
from pathlib import Path
from typing import Any

import pytest

from forge.files.safetensors import Tensor
from forge.fit import gpus, memory, model_shape, verdict, weights
from forge.fit.model_shape import Shape
from forge.fit.verdict import Load, Verdict
from forge.schema.values import BuildTable, ConvertTable, Recipe, ServeTable, Source

DATA = Path(__file__).parents[1] / "data"
PUBLISHED: dict[str, Any] = json.loads((DATA / "published_models.json").read_text())
MEASURED: dict[str, Any] = json.loads((DATA / "measured_memory.json").read_text())
MODELS: dict[str, Any] = {model["name"]: model for model in PUBLISHED["models"]}
COUNTED = [name for name, model in MODELS.items() if "parameters" in model]
CACHED = [name for name, model in MODELS.items() if "cache" in model]


def recipe(**tables: Any) -> Recipe:
    return Recipe(name="x", source=Source(hub="a/b"), **tables)


def known(name: str) -> tuple[Shape, tuple[Tensor, ...]]:
    config = MODELS[name]["config"]
    return model_shape.read(config), model_shape.tensors(config)


def test_published_figures_name_sources_for_ten_models_of_five_families() -> None:
    assert len(COUNTED) >= 10
    assert len(CACHED) >= 10
    assert len({MODELS[name]["family"] for name in COUNTED}) >= 5
    assert all(set(model["sources"]) <= set(PUBLISHED["sources"]) for model in MODELS.values())


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_are_what_was_published(name: str) -> None:
    _, tensors = known(name)
    assert weights.parameters(tensors) == MODELS[name]["parameters"]


@pytest.mark.parametrize("name", COUNTED)
def test_weights_in_half_precision_match_published_bytes(name: str) -> None:
    shape, tensors = known(name)
    how = weights.terms(recipe(), shape)
    published = MODELS[name].get("bytes", 2 * MODELS[name]["parameters"])
    assert weights.weights(tensors, shape, how).total == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("name", CACHED)
def test_a_key_value_cache_is_exactly_what_was_published(name: str) -> None:
    shape, _ = known(name)
    cache = memory.kv_cache(shape, weights.terms(recipe(), shape))
    for tokens, size, _ in MODELS[name]["cache"]:
        assert cache.per_token * tokens == size


@pytest.mark.parametrize("row", MEASURED["weights"], ids=lambda row: f"{row['model']} {row['quantization']}")
def test_quantized_engines_match_what_tensorrt_llm_loaded(row: dict[str, Any]) -> None:
    shape, tensors = known(row["model"])
    how = weights.terms(recipe(convert=ConvertTable(dtype="float16", quantization=row["quantization"])), shape)
    assert weights.weights(tensors, shape, how).heaviest >> 20 == pytest.approx(row["mib"], rel=0.01)


@pytest.mark.parametrize("row", MEASURED["activations"], ids=lambda row: f"{row['model']} {row['note']}")
def test_measured_activations_lie_within_the_stated_span(row: dict[str, Any]) -> None:
    shape, _ = known(row["model"])
    wanted = recipe(
        convert=ConvertTable(dtype="float16", tp=row["tp"], quantization=row["quantization"]),
        build=BuildTable(
            max_batch_size=row["batch"],
            max_seq_len=row["length"],
            max_num_tokens=row["tokens"],
            args={"gather_context_logits": True} if row.get("gather") else {},
        ),
    )
    estimate = memory.activation(wanted, shape, weights.terms(wanted, shape))
    beside = 0 if row["buffers"] else memory.buffers(wanted, shape)
    assert estimate.low - beside <= row["bytes"] <= estimate.high


@pytest.mark.parametrize("row", MEASURED["caches"], ids=lambda row: f"{row['gpu']}")
def test_tensorrt_llm_found_room_for_the_tokens_said(row: dict[str, Any]) -> None:
    shape, tensors = known(row["model"])
    wanted = recipe(
        convert=ConvertTable(dtype="float16", quantization=row.get("quantization", "none")),
        build=BuildTable(
            max_batch_size=row["batch"],
            max_beam_width=row.get("beams", 1),
            max_seq_len=row["length"],
            max_num_tokens=row["tokens_at_once"],
        ),
        serve=ServeTable(kv_cache_free_gpu_mem_fraction=row["fraction"]),
    )
    need = verdict.bench(Load(wanted, shape, tensors, 0))(wanted)
    assert verdict.judge(wanted, need, gpus.find(row["gpu"])).tokens == pytest.approx(row["tokens"], rel=0.05)


def test_llama_7b_in_bfloat16_fits_a_24_gb_card() -> None:
    shape, tensors = known("meta-llama/Llama-2-7b-hf")
    wanted = recipe(convert=ConvertTable(dtype="bfloat16"), build=BuildTable(max_batch_size=8, max_seq_len=4096))
    need = verdict.bench(Load(wanted, shape, tensors, 0))(wanted)
    judged = verdict.judge(wanted, need, gpus.find("RTX 4090"))
    assert judged.verdict is Verdict.LIMITED
    assert judged.certain
    assert 17_000 < judged.tokens < 19_500
    assert judged.sequences == 4
