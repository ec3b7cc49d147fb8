"""The load loop against a model whose timing is known exactly."""

import itertools
import statistics

import pytest

from bench_kit import Letters, Speaker, asks, drive, repeat
from forge.bench import figures, workload
from forge.bench.driver import Load
from forge.bench.load import arrivals
from forge.bench.workload import Counter


def values(answers: tuple[object, ...], **limits: float) -> dict[str, float]:
    found = figures.figures([repeat(answers, **limits)])  # type: ignore[arg-type]
    return {name: figure.value for name, figure in found.items()}


def test_times_are_what_the_server_takes() -> None:
    found = values(drive(Speaker(first=0.1, gap=0.02), Load(concurrency=1), asks(4, tokens=6)))
    assert found["ttft_p50"] == pytest.approx(0.1)
    assert found["itl_p95"] == pytest.approx(0.02)
    assert found["latency_p99"] == pytest.approx(0.1 + 5 * 0.02)


def test_first_token_and_gaps_add_up_to_each_latency() -> None:
    answers = drive(Speaker(first=0.3, gap=0.05, slots=2), Load(concurrency=4), asks(9, tokens=7))
    for record in repeat(answers).records:
        assert record.ttft is not None
        assert record.itl is not None
        assert record.ttft + record.itl * (record.output_tokens - 1) == pytest.approx(record.latency, abs=2e-6)


@pytest.mark.parametrize(("load", "slots"), [(Load(concurrency=3), 1000), (Load(concurrency=6), 2), (Load(rate=4.0), 3)])
def test_littles_law_holds_against_what_the_server_saw(load: Load, slots: int) -> None:
    """Requests in the system on average = arrivals a second x time in the system; the left side is the server's own count."""
    speaker = Speaker(first=0.2, gap=0.03, slots=slots)
    found = values(answers := drive(speaker, load, asks(40)))
    wall = repeat(answers).wall
    assert found["requests_per_s"] * found["latency_mean"] == pytest.approx(speaker.busy / wall, rel=1e-3)


def test_a_closed_loop_keeps_exactly_so_many_requests_under_way() -> None:
    speaker = Speaker()
    assert len(drive(speaker, Load(concurrency=5), asks(23))) == 23
    assert speaker.most == 5


def test_throughput_is_tokens_over_the_whole_time() -> None:
    found = values(drive(Speaker(first=0.1, gap=0.1), Load(concurrency=2), asks(4, tokens=10)))
    assert found["output_tokens_per_s"] == pytest.approx(4 * 10 / 2.0)


def test_an_open_loop_counts_waiting_from_when_requests_were_due() -> None:
    """One stalled request delays those behind it; a loop that waited for it would see one slow answer only."""
    calm, stalled = (Speaker(first=0.01, gap=0.0, slots=1, stall=stall) for stall in ((-1, 0.0), (10, 5.0)))
    before, after = (values(drive(each, Load(rate=5.0), asks(60, tokens=1), seed=3)) for each in (calm, stalled))
    assert before["ttft_p75"] < 0.1
    assert after["ttft_p75"] > 1.0
    assert after["send_delay_p99"] < 0.001, "the requests themselves went out when they were due"


def test_arrivals_are_poissons_and_a_seed_repeats_them() -> None:
    moments = list(itertools.islice(arrivals(20.0, seed=1), 4000))
    waits = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert statistics.fmean(waits) == pytest.approx(1 / 20, rel=0.05)
    assert statistics.stdev(waits) == pytest.approx(1 / 20, rel=0.05), "exponential: as wide as its mean"
    assert list(itertools.islice(arrivals(20.0, seed=1), 4000)) == moments
    assert next(arrivals(20.0, seed=2)) != moments[0]


def test_requests_are_sent_for_the_duration_and_then_waited_for() -> None:
    answers = drive(Speaker(first=0.1, gap=0.1), Load(concurrency=2), asks(3, tokens=4), duration=2.0)
    assert max(answer.sent for answer in answers) < 2.0 < max(answer.end for answer in answers)
    assert len(answers) == 2 * 5
    assert not any(answer.error for answer in answers)


def test_errors_are_counted_and_not_dropped_or_taken_for_answers() -> None:
    wanted = asks(0, prompts=["good", "fail now", "good too", "fail again"])
    answers = drive(Speaker(first=0.1, gap=0.1), Load(concurrency=1), wanted)
    found = values(answers, ttft=1.0)
    assert [answer.error for answer in answers] == ["", "out of memory", "", "out of memory"]
    assert (found["error_share"], found["goodput_share"]) == (0.5, 0.5)
    assert found["latency_p50"] == pytest.approx(0.5), "of the answers that came"


def test_a_request_that_takes_too_long_is_an_error() -> None:
    answers = drive(Speaker(first=0.1, stall=(1, 60.0)), Load(concurrency=2), asks(4), patience=10.0)
    assert [answer.error for answer in answers if answer.error] == ["no whole answer within 10 s"]


def test_a_dead_server_ends_a_load_bounded_by_time() -> None:
    answers = drive(Speaker(first=0.0), Load(concurrency=1), asks(0, prompts=["fail"]), duration=1.0)
    assert len(answers) == 100


def test_goodput_counts_answers_that_keep_every_limit() -> None:
    answers = drive(Speaker(first=0.1, gap=0.02, slots=2), Load(concurrency=4), asks(8, tokens=6))
    assert values(answers, ttft=0.15)["goodput_share"] == pytest.approx(2 / 8), "two are answered at once, the others wait"
    assert values(answers, ttft=0.15, itl=0.01)["goodput_share"] == 0.0
    found = values(answers, ttft=1.0, itl=0.03, latency=1.0)
    assert found["goodput_per_s"] == pytest.approx(found["requests_per_s"])


def test_the_warm_up_comes_first_and_is_in_no_figure() -> None:
    speaker = Speaker(stall=(0, 30.0))
    answers = drive(speaker, Load(concurrency=2), asks(4), warm=asks(2))
    assert len(speaker.asked) == 6
    assert len(answers) == 4
    assert max(answer.end for answer in answers) < 1.0


def test_who_counted_the_tokens_is_kept_in_mind() -> None:
    wanted = asks(2, tokens=5)
    counter = Counter(Letters(), {})
    for answer in drive(Speaker(counts=False), Load(concurrency=1), wanted):
        assert counter.record(answer).output_tokens == 5
    assert counter.ways == {"tokenizer"}
    counter = Counter(Letters(missing="gone"), {})
    assert [counter.record(answer).output_tokens for answer in drive(Speaker(counts=False), Load(concurrency=1), wanted)] == [
        5,
        5,
    ]
    assert counter.ways == {"chunks"}


def test_gaps_are_between_the_chunks_of_one_answer() -> None:
    answers = drive(Speaker(first=0.5, gap=0.02), Load(concurrency=2), asks(4, tokens=3))
    assert workload.gaps(answers) == pytest.approx([0.02] * 8)
