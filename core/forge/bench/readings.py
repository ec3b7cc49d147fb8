"""What is looked at beside the load: Triton's own counters and gauges, and the GPUs. Pure: from readings to what they say."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from msgspec import Struct, field

from forge.bench.results import Gpu, ServerTimes, Span

_MICRO = 1e-6
_TIMES = {
    "queue": "nv_inference_queue_duration_us",
    "compute_input": "nv_inference_compute_input_duration_us",
    "compute": "nv_inference_compute_infer_duration_us",
    "compute_output": "nv_inference_compute_output_duration_us",
}
_SUCCESS, _FAILURE, _EXECUTIONS = "nv_inference_request_success", "nv_inference_request_failure", "nv_inference_exec_count"
COUNTERS = frozenset({*_TIMES.values(), _SUCCESS, _FAILURE, _EXECUTIONS})
"""Triton's names, by model: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html."""


class Scrape(Struct, frozen=True):
    """One reading of a server's metrics: its counters by (name, model), its gauges as they are written there."""

    counters: Mapping[tuple[str, str], float]
    gauges: Mapping[str, float]


class GpuReading(Struct, frozen=True):
    """One GPU at one moment; utilisation as a share, bytes, watts, Celsius."""

    index: int
    name: str
    utilisation: float
    memory: float
    power: float | None
    temperature: float | None


class Seen(Struct):
    """What a look at a server saw, whole once the look is over. ``notes`` say what could not be looked at."""

    triton: Mapping[str, ServerTimes] = field(default_factory=dict[str, ServerTimes])
    gauges: Mapping[str, Span] = field(default_factory=dict[str, Span])
    gpus: tuple[Gpu, ...] = ()
    notes: tuple[str, ...] = ()


class Instruments(Protocol):
    """Looks at one server and at this machine's GPUs while a load runs."""

    def version(self) -> str:
        """Of the server; empty where it does not say."""
        ...

    def look(self) -> AbstractContextManager[Seen]: ...


def times(before: Scrape, after: Scrape) -> dict[str, ServerTimes]:
    """What each model's counters gained, for those that had requests."""
    found: dict[str, ServerTimes] = {}
    for model in sorted({model for _, model in after.counters}):

        def gained(name: str, model: str = model) -> float:
            return after.counters.get((name, model), 0.0) - before.counters.get((name, model), 0.0)

        done = round(gained(_SUCCESS))
        if done <= 0 and gained(_FAILURE) <= 0:
            continue
        means = {word: gained(name) * _MICRO / max(done, 1) for word, name in _TIMES.items()}
        found[model] = ServerTimes(
            requests=done, failures=round(gained(_FAILURE)), executions=round(gained(_EXECUTIONS)), **means
        )
    return found


def gauges(scrapes: Sequence[Scrape]) -> dict[str, Span]:
    """The gauges that were ever anything but 0."""
    names = sorted({name for scrape in scrapes for name in scrape.gauges})
    spans = {name: span([scrape.gauges[name] for scrape in scrapes if name in scrape.gauges]) for name in names}
    return {name: each for name, each in spans.items() if each.highest or each.mean}


def gpus(readings: Sequence[GpuReading]) -> tuple[Gpu, ...]:
    """Each GPU over all of its readings."""
    found: list[Gpu] = []
    for index in sorted({reading.index for reading in readings}):
        own = [reading for reading in readings if reading.index == index]
        power = [each.power for each in own if each.power is not None]
        heat = [each.temperature for each in own if each.temperature is not None]
        found.append(
            Gpu(
                index=index,
                name=own[0].name,
                utilisation=span([each.utilisation for each in own]),
                memory=span([each.memory for each in own]),
                power=span(power) if power else None,
                temperature=span(heat) if heat else None,
            )
        )
    return tuple(found)


def span(values: Sequence[float]) -> Span:
    return Span(mean=statistics.fmean(values), highest=max(values))
