"""Statistics of few numbers, the prompts, and the options, each by itself."""

import random
from pathlib import Path

import pytest

from bench_kit import Letters
from forge.bench import figures, intervals, options, prompts, results
from forge.bench.options import BenchOptions, settings
from forge.errors import BenchError

SAMPLE = Path(__file__).parents[1] / "data" / "bench_results.json"


def test_percentiles_lie_between_the_nearest_ranks() -> None:
    ordered = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [intervals.percentile(ordered, share) for share in (0, 50, 100, 95)] == pytest.approx([1, 3, 5, 4.8])


def test_the_interval_of_a_mean_is_students() -> None:
    found = intervals.mean([10.0, 12.0, 14.0])
    assert found.value == 12
    assert (found.low, found.high) == pytest.approx((12 - 4.303 * 2 / 3**0.5, 12 + 4.303 * 2 / 3**0.5))
    assert intervals.mean([3.0]) == intervals.Interval(3.0)


def test_intervals_of_means_and_ratios_hold_at_95_percent() -> None:
    chance = random.Random(4)
    means = ratios = 0
    for _ in range(2000):
        one, other = ([chance.gauss(centre, 1) for _ in range(5)] for centre in (20, 22))
        mean, ratio = intervals.mean(one), intervals.ratio(other, one)
        assert mean.low is not None
        assert mean.high is not None
        assert ratio.low is not None
        assert ratio.high is not None
        means += mean.low <= 20 <= mean.high
        ratios += ratio.low <= 1.1 <= ratio.high
    assert 0.93 < means / 2000 < 0.97
    assert 0.93 < ratios / 2000 < 0.98


def test_a_share_of_few_is_uncertain_even_when_all_passed() -> None:
    found = intervals.proportion(10, 10)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.7225, abs=1e-3)


@pytest.mark.parametrize("length", [3, 32, 500])
def test_made_prompts_have_their_length_and_no_two_are_alike(length: int) -> None:
    tokens = Letters(opening=1)
    found = prompts.made(tokens, length, 20, seed=3)
    assert {tokens.count(prompt.text) for prompt in found} == {length}
    assert len({prompt.text for prompt in found}) > 15
    assert prompts.made(tokens, length, 20, seed=3) == found
    assert prompts.digest(prompts.made(tokens, length, 20, seed=4)) != prompts.digest(found)


def test_a_length_that_special_tokens_alone_exceed_is_refused() -> None:
    with pytest.raises(BenchError, match="no prompt of 2 tokens"):
        prompts.made(Letters(opening=2), 2, 1, seed=1)


def test_a_data_set_is_read_by_line_and_errors_named() -> None:
    text = '{"prompt": "a", "max_tokens": 3}\n\n{"messages": [{"role": "user", "content": "b"}]}\n'
    assert [entry.max_tokens for entry in prompts.dataset(text, "x.jsonl")] == [3, None]
    for line, complaint in (('{"promt": "a"}', "promt"), ("{}", "prompt"), ('{"prompt": "a", "max_tokens": 0}', "max_tokens")):
        with pytest.raises(BenchError, match=complaint) as caught:
            prompts.dataset(f"{text}{line}", "x.jsonl")
        assert caught.value.where == "x.jsonl:4"
    with pytest.raises(BenchError, match="empty"):
        prompts.dataset("\n", "x.jsonl")


def test_a_sweep_is_every_combination() -> None:
    swept = options.swept(["temperature=0.2,0.7", "concurrency=1,4"])
    found = settings(BenchOptions(sweep=swept, sampling={"top_p": 0.9}))
    assert [(each.load.concurrency, each.sampling) for each in found] == [
        (concurrency, {"top_p": 0.9, "temperature": temperature}) for temperature in (0.2, 0.7) for concurrency in (1, 4)
    ]
    assert found[1].label == "concurrency=4 temperature=0.2"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("temperture=1", "did you mean .temperature"),
        ("temperature", "names no values"),
        ("temperature=warm", "is no value"),
        ("beam_width=1.5", "is no value"),
        ("concurrency=0", "cannot be 0"),
        ("rate=nan", "cannot be nan"),
        ("top_p=-1", "cannot be -1"),
        ("top_p=0.5,0.5", "twice"),
    ],
)
def test_a_sweep_that_says_nothing_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(BenchError, match=complaint):
        options.swept([text])


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        (BenchOptions(concurrency=2, rate=1.0), "exclude"),
        (BenchOptions(rate=1.0, sweep={"concurrency": (1, 2)}), "exclude"),
        (BenchOptions(dataset=Path("d"), input_tokens=4), "lengths of their own"),
        (BenchOptions(requests=1, duration=2.0), "not by both"),
        (BenchOptions(sampling={"top_p": 0.9}, sweep={"top_p": (0.5,)}), "swept as well: top_p"),
        (BenchOptions(concurrency=2, sweep={"concurrency": (1, 2)}), "swept as well: concurrency"),
    ],
)
def test_a_wish_that_contradicts_itself_is_refused(wanted: BenchOptions, complaint: str) -> None:
    with pytest.raises(BenchError, match=complaint):
        settings(wanted)


def test_limits_are_times_with_units() -> None:
    assert options.limits("ttft=200ms, itl=0.05s") == {"ttft": 0.2, "itl": 0.05}
    for text in ("ttft=200", "tft=1s", "itl"):
        with pytest.raises(BenchError):
            options.limits(text)


def test_results_come_back_as_they_were_written() -> None:
    found = results.read(SAMPLE.read_bytes(), str(SAMPLE))
    assert results.read(results.write(found), "x") == found
    for text, complaint in (("{}", "no results"), ('{"format": 99}', "later forge"), ("no", "no results")):
        with pytest.raises(BenchError, match=complaint):
            results.read(text, "x")


def test_the_page_names_every_figure() -> None:
    page = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    table = page.split("## The figures")[1].split("`*` is")[0]
    for name in figures.names():
        assert f"`{name}`" in table or f"`{name.rpartition('_')[0]}_*`" in table, name
