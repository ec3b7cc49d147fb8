"""A benchmark of a real model on a real Triton, and what it looks at beside the load."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from forge.api.forge import Forge
from forge.bench import compare, prompts, results
from forge.bench.instruments import parse
from forge.bench.options import BenchOptions
from forge.bench.results import Results
from forge.client.tokenizer import TokenizerFolder
from forge.serve.lookup import Target

METRICS = """# HELP nv_inference_request_success Number of successful inference requests
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="bls",version="1"} 3
nv_inference_request_success{model="bls",version="2"} 4
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{model="bls",version="1"} 1500
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="bls",version="1"} 2
# TYPE nv_trt_llm_kv_cache_block_metrics gauge
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="llm",version="1"} 0.25
# TYPE nv_cache_num_hits_per_model counter
nv_cache_num_hits_per_model{model="bls",version="1"} 9
"""

QUALITY = """
[[prompt]]
name = "capital"
text = "What is the capital of France?"
chat = true
max_tokens = 12
check = [{ contains = "Paris" }]
[[prompt]]
name = "nonsense"
text = "What is the capital of France?"
chat = true
max_tokens = 4
check = [{ exact = "no such answer" }]
"""


def test_tritons_metrics_are_read_by_model_and_kind() -> None:
    found = parse(METRICS)
    assert found.counters == {("nv_inference_request_success", "bls"): 7, ("nv_inference_queue_duration_us", "bls"): 1500}
    assert found.gauges == {
        'nv_inference_pending_request_count{model="bls"}': 2,
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="llm"}': 0.25,
    }


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    assert "has no tokenizer.json" in TokenizerFolder(tmp_path).missing
    assert TokenizerFolder(tmp_path).digest == ""


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 17, 300])
def test_prompts_have_their_length_in_the_models_own_tokens(smollm2_checkpoint: Path, length: int) -> None:
    own = Tokenizer.from_file(str(smollm2_checkpoint / "tokenizer.json"))
    made = prompts.made(TokenizerFolder(smollm2_checkpoint), length, 5, seed=1)
    assert {len(own.encode(prompt.text).ids) for prompt in made} == {length}


@pytest.fixture(scope="module")
def measured(shop: Forge, served: Target, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    quality = tmp_path_factory.mktemp("quality") / "quality.toml"
    quality.write_text(QUALITY)
    options = BenchOptions(
        requests=4,
        repeats=2,
        input_tokens=16,
        output_tokens=6,
        sweep={"concurrency": (1, 2)},
        sampling={"top_k": 1, "temperature": 1.0},
        goodput={"latency": 3600.0},
        quality=quality,
    )
    return shop.bench(served.model.name, served.repository, options)


@pytest.mark.slow
def test_every_request_came_with_the_lengths_asked_for(measured: tuple[Results, Path]) -> None:
    found, _ = measured
    records = [record for point in found.points for repeat in point.repeats for record in repeat.records]
    assert len(records) == 2 * 2 * 4
    assert {(record.input_tokens, record.output_tokens, record.error, record.good) for record in records} == {(16, 6, "", True)}
    assert found.settings.counted == "server", "the twin says how many tokens it made"


@pytest.mark.slow
def test_the_figures_of_a_real_server_hang_together(measured: tuple[Results, Path]) -> None:
    for point in measured[0].points:
        for repeat in point.repeats:
            for record in repeat.records:
                assert record.ttft is not None
                assert record.itl is not None
                assert 0 < record.ttft + record.itl * 5 <= record.latency + 1e-5
                assert record.end <= repeat.wall + 1e-6
            busy = sum(record.latency for record in repeat.records) / repeat.wall
            assert point.concurrency is not None
            assert 0.5 * point.concurrency < busy <= point.concurrency + 1e-6


@pytest.mark.slow
def test_tritons_own_counters_agree_on_the_number_of_requests(measured: tuple[Results, Path]) -> None:
    repeat = measured[0].points[0].repeats[0]
    assert repeat.triton["tensorrt_llm_bls"].requests == 4
    assert {times.failures for times in repeat.triton.values()} == {0}


@pytest.mark.slow
def test_the_results_are_bound_to_what_was_measured_and_kept(
    measured: tuple[Results, Path], served: Target, shop: Forge
) -> None:
    found, file = measured
    assert results.read(file.read_bytes(), str(file)) == found
    assert file.parent == shop.home / "bench"
    subject = found.subjects[0]
    assert (subject.entry, subject.keys) == (served.model.entry, served.model.keys)
    assert len(subject.tokenizer) == len(found.settings.prompts) == 64
    assert found.triton.startswith("2.")
    assert found.machine.cpu
    assert compare.compare(found, found).unlike == ()


@pytest.mark.slow
def test_quality_stands_beside_speed(measured: tuple[Results, Path]) -> None:
    for point in measured[0].points:
        assert point.quality is not None
        assert [(each.name, each.passed) for each in point.quality.verdicts] == [("capital", True), ("nonsense", False)]
        assert point.quality.score == 0.5
