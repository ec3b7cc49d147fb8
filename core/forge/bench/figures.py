"""From records to figures: what each is called, its unit, and which way is better."""

from collections.abc import Iterable, Mapping, Sequence

from forge.bench import intervals
from forge.bench.results import PERCENTILES, Better, Figure, Record, Repeat, Unit

TIMES = ("ttft", "itl", "latency")
"""Distributions over requests; a goodput limit is on one of these."""
_PLAIN: Mapping[str, tuple[Unit, Better]] = {
    "requests_per_s": ("requests/s", "higher"),
    "output_tokens_per_s": ("tokens/s", "higher"),
    "goodput_per_s": ("requests/s", "higher"),
    "goodput_share": ("share", "higher"),
    "error_share": ("share", "lower"),
    "input_tokens_mean": ("tokens", ""),
    "output_tokens_mean": ("tokens", ""),
    "in_flight_mean": ("requests", ""),
    "send_delay_p99": ("s", "lower"),
}


def names() -> tuple[str, ...]:
    """Every figure that a point can have."""
    return (*(f"{time}_{kind}" for time in TIMES for kind in _kinds()), *_PLAIN)


def better(name: str) -> Better:
    """Which way is an improvement of a figure of this name."""
    return _PLAIN.get(name, ("s", "lower"))[1]


def _kinds() -> tuple[str, ...]:
    return ("mean", *(f"p{share}" for share in PERCENTILES))


def figures(repeats: Sequence[Repeat]) -> dict[str, Figure]:
    """Every figure that at least one repeat gives; the interval is over those repeats."""
    each = [_of(repeat) for repeat in repeats]
    found: dict[str, Figure] = {}
    for name in names():
        values = tuple(one[name] for one in each if name in one)
        if values:
            unit, better = _PLAIN.get(name, ("s", "lower"))
            over = intervals.mean(values)
            found[name] = Figure(value=over.value, unit=unit, better=better, low=over.low, high=over.high, values=values)
    return found


def distributions(repeats: Sequence[Repeat], gaps: Iterable[float]) -> dict[str, tuple[float, ...]]:
    """The percentiles from 0 to 100 of every time, over all repeats together; ``gaps`` are those between chunks."""
    done = [record for repeat in repeats for record in repeat.records if not record.error]
    samples = {**{time: _times(done, time) for time in TIMES}, "gap": sorted(gaps)}
    return {
        name: tuple(round(intervals.percentile(ordered, share), 6) for share in range(101))
        for name, ordered in samples.items()
        if ordered
    }


def good(record: Record, limits: Mapping[str, float]) -> bool | None:
    """Whether an answer came and kept every limit; None without limits. An answer of one token has no ITL to keep."""
    if not limits:
        return None
    times = {"ttft": record.ttft, "itl": record.itl, "latency": record.latency}
    return not record.error and all((value := times[name]) is None or value <= most for name, most in limits.items())


def _of(repeat: Repeat) -> dict[str, float]:
    """One repeat's own figures. Rates are over its wall time; latencies over the requests that succeeded."""
    done = [record for record in repeat.records if not record.error]
    found: dict[str, float] = {}
    for time in TIMES:
        if ordered := _times(done, time):
            found[f"{time}_mean"] = sum(ordered) / len(ordered)
            found |= {f"{time}_p{share}": intervals.percentile(ordered, share) for share in PERCENTILES}
    if repeat.records:
        found["error_share"] = 1 - len(done) / len(repeat.records)
        delays = sorted(record.sent - record.due for record in repeat.records)
        found["send_delay_p99"] = intervals.percentile(delays, 99)
    if done:
        found["input_tokens_mean"] = sum(record.input_tokens for record in done) / len(done)
        found["output_tokens_mean"] = sum(record.output_tokens for record in done) / len(done)
    if repeat.wall > 0:
        found["requests_per_s"] = len(done) / repeat.wall
        found["output_tokens_per_s"] = sum(record.output_tokens for record in done) / repeat.wall
        found["in_flight_mean"] = sum(record.latency for record in repeat.records) / repeat.wall
    return found | _goodput(repeat)


def _goodput(repeat: Repeat) -> dict[str, float]:
    judged = [record.good for record in repeat.records if record.good is not None]
    if not judged:
        return {}
    return {"goodput_share": sum(judged) / len(judged), "goodput_per_s": sum(judged) / repeat.wall if repeat.wall else 0.0}


def _times(records: Iterable[Record], name: str) -> list[float]:
    return sorted(value for record in records if (value := getattr(record, name)) is not None)
