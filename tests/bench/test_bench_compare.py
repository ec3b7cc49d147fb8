"""Two results side by side: what may be compared, what the ratios say, and which limits fail a build."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from forge.bench import compare, intervals, results
from forge.bench.results import Figure, Point, Results
from forge.cli import main
from forge.errors import BenchError

SAMPLE = Path(__file__).parents[1] / "data" / "bench_results.json"


@pytest.fixture(scope="module")
def sample() -> Results:
    return results.read(SAMPLE.read_bytes(), str(SAMPLE))


def slower(found: Results, factor: float) -> Results:
    """The same with every time so much longer."""

    def stretched(figure: Figure) -> Figure:
        if figure.unit != "s":
            return figure
        return replace(figure, value=figure.value * factor, values=tuple(value * factor for value in figure.values))

    def of(point: Point) -> Point:
        return replace(point, figures={name: stretched(figure) for name, figure in point.figures.items()})

    return replace(found, points=tuple(of(point) for point in found.points))


def forge(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, words)])


def test_the_same_results_are_alike_and_nothing_is_better(sample: Results) -> None:
    found = compare.compare(sample, sample)
    assert found.differences == ()
    assert len(found.pairs) == len(sample.points)
    changes = [change for pair in found.pairs for change in pair.changes]
    assert {change.verdict for change in changes} <= {"same", "unclear", ""}
    assert all(change.ratio is None or change.ratio.value == pytest.approx(1) for change in changes)


def test_a_real_slowdown_is_told_from_noise(sample: Results) -> None:
    found = compare.compare(sample, slower(sample, 3.0))
    verdicts = {change.name: change.verdict for change in found.pairs[0].changes}
    assert verdicts["itl_p50"] == verdicts["latency_mean"] == "worse"
    assert verdicts["output_tokens_per_s"] == "same"
    back = compare.compare(slower(sample, 3.0), sample)
    assert next(change for change in back.pairs[0].changes if change.name == "itl_p50").verdict == "better"


def test_without_repeats_nothing_is_called_better(sample: Results) -> None:
    def once(point: Point) -> Point:
        return replace(point, figures={n: replace(f, values=f.values[:1]) for n, f in point.figures.items()})

    single = replace(sample, points=tuple(once(point) for point in sample.points))
    found = compare.compare(single, slower(single, 9.0))
    assert {change.verdict for change in found.pairs[0].changes if change.unit == "s"} == {"unsure"}


@pytest.mark.parametrize(
    ("settings", "other", "named"),
    [
        ({"input_tokens": 64}, {}, "input tokens"),
        ({"prompts": "f" * 64}, {}, "prompts"),
        ({"stream": False}, {}, "stream"),
        ({"goodput": {}}, {}, "goodput"),
        ({"counted": "chunks"}, {}, "counting of tokens"),
        ({}, {"driver": "aiperf 0.9"}, "driver"),
        ({}, {"machine": {"cpu": "another"}}, "machine cpu"),
        ({}, {"machine": {"driver": "1"}}, "machine driver"),
        ({}, {"subject": {"tokenizer": "9" * 64}}, "tokenizer"),
    ],
)
def test_unlike_things_are_refused_and_named(
    sample: Results, settings: dict[str, Any], other: dict[str, Any], named: str
) -> None:
    changed = replace(sample, settings=replace(sample.settings, **settings), driver=other.get("driver", sample.driver))
    changed = replace(changed, machine=replace(sample.machine, **other.get("machine", {})))
    changed = replace(changed, subjects=(replace(sample.subjects[0], **other.get("subject", {})),))
    with pytest.raises(BenchError, match=named):
        compare.require_alike(compare.compare(sample, changed), "a, b")


def test_another_model_forge_or_sampling_is_what_one_compares(sample: Results) -> None:
    subject = replace(sample.subjects[0], name="other", entry="7" * 64, keys={}, runtime="engine", image="sha256:1")
    changed = replace(sample, forge="9.9", triton="9", subjects=(subject,), settings=replace(sample.settings, sampling={}))
    found = compare.compare(sample, changed)
    compare.require_alike(found, "a, b")
    assert {"model name", "model entry", "model runtime", "model image", "forge", "Triton", "sampling"} <= {
        each.what for each in found.differences
    }


def test_points_that_only_one_has_are_unlike(sample: Results) -> None:
    less = replace(sample, points=sample.points[:2])
    found = compare.compare(sample, less)
    assert [each.what for each in found.unlike] == ["points"]
    assert len(found.pairs) == 2


@pytest.mark.parametrize(
    ("text", "figure", "value", "relative"),
    [
        ("ttft_p95>1.05x", "ttft_p95", 1.05, True),
        (" ttft_p95 > 200ms ", "ttft_p95", 0.2, False),
        ("error_share>=1%", "error_share", 0.01, False),
        ("output_tokens_per_s<500", "output_tokens_per_s", 500, False),
        ("quality<0.9x", "quality", 0.9, True),
    ],
)
def test_a_limit_is_read(text: str, figure: str, value: float, relative: bool) -> None:
    found = compare.limit(text)
    assert (found.figure, found.relative) == (figure, relative)
    assert found.value == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["ttft_p95", "ttft_p95>200", "ttft_p95>200x2", "ttft_p94>1x", "ttft_p95=1x", "ttft_p95>-1x", "quality>3ms",
     "requests_per_s<5s", "ttft_p95>5%", "ttft_p95>1.05x,itl_p95>1x", ""],
)  # fmt: skip
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(BenchError):
        compare.limit(text)


def test_limits_on_ratios_and_values_fail_for_the_right_point(sample: Results) -> None:
    found = compare.compare(sample, slower(sample, 1.1))
    assert len(compare.broken([compare.limit("ttft_p95>1.05x")], found)) == len(sample.points)
    assert compare.broken([compare.limit("ttft_p95>1.15x"), compare.limit("ttft_p95>10s")], found) == ()
    at = max(point.figures["ttft_p95"].value for point in sample.points)
    assert len(compare.exceeded([compare.limit(f"ttft_p95>{at * 1e6 - 1:.0f}us")], sample)) == 1


def test_a_limit_that_could_never_fail_is_an_error(sample: Results) -> None:
    bare = replace(sample, points=tuple(replace(point, quality=None) for point in sample.points))
    with pytest.raises(BenchError, match="could judge"):
        compare.exceeded([compare.limit("quality<0.9")], bare)
    with pytest.raises(BenchError, match="two results"):
        compare.require_absolute([compare.limit("ttft_p95>1.05x")])


def test_compare_has_exit_codes_for_unlike_results_and_for_limits(sample: Results, tmp_path: Path) -> None:
    other, unlike = tmp_path / "other.json", tmp_path / "unlike.json"
    other.write_text(results.write(slower(sample, 1.5)))
    unlike.write_text(results.write(replace(sample, settings=replace(sample.settings, warmup=9))))
    assert forge("compare", SAMPLE, other).exit_code == 0
    limited = forge("compare", SAMPLE, other, "--fail-if", "ttft_p95>1.05x")
    assert (limited.exit_code, "beyond a limit: ttft_p95>1.05x: it is 1.5x" in limited.stderr) == (16, True)
    refused = forge("compare", SAMPLE, unlike)
    assert (refused.exit_code, "warmup" in refused.stderr) == (15, True)
    assert forge("compare", SAMPLE, unlike, "--anyway").exit_code == 0
    assert forge("compare", SAMPLE, other, "--fail-if", "ttft>fast").exit_code == 15
    document = json.loads(forge("compare", SAMPLE, other, "--json", "--fail-if", "itl_p50>1.2x").stdout)
    assert len(document["broken"]) == len(document["pairs"]) == 4


def test_the_first_word_is_a_verb_or_else_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    for words in (("nobody",), ("run", "nobody"), ("-q", "nobody")):
        result = forge(*words)
        assert (result.exit_code, "no server is running" in result.stderr) == (9, True), result.output
    assert forge("nobody", "--fail-if", "ttft_p95>1.05x").exit_code == 15
    assert "compare" in forge("--help").output


def test_three_times_slower_with_wide_intervals_is_not_the_same() -> None:
    slow = intervals.ratio([0.1, 0.9, 2.0], [0.3, 0.4, 0.3])
    assert (slow.clear, slow.within(compare.ALIKE)) == (False, False)
    alike = intervals.ratio([0.301, 0.302, 0.300], [0.300, 0.301, 0.302])
    assert (alike.clear, alike.within(compare.ALIKE)) == (False, True)
